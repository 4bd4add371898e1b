"""Policy, reward model, tokenizer, prompts and lengths of completions: random, of the shape of a real recipe's."""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
QWEN3_4B = dict(zip(SIZES, (2560, 9728, 36, 32, 8, 128, 151_936, True), strict=True))
QWEN3_17B = dict(zip(SIZES, (2048, 6144, 28, 16, 8, 128, 151_936, True), strict=True))
LLAMA_8B = dict(zip(SIZES, (4096, 14_336, 32, 32, 8, 128, 128_256, False), strict=True))
MIDDLE = dict(zip(SIZES, (512, 1536, 8, 8, 2, 64, 32_064, True), strict=True))
TINY = dict(zip(SIZES, (128, 384, 4, 4, 2, 32, 768, True), strict=True))

# policy, reward model and its family, and the work of a step: prompt tokens, completion tokens (median, 95th
# percentile, longest), rollouts, group, micro-batch
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b-24gb": {
        "policy": QWEN3_4B,
        "reward": LLAMA_8B,
        "family": "llama",
        "tokens": (128, 300, 900, 1024),
        "rollouts": (64, 8, 2),
        "cap_gib": 24,
    },
    "qwen3-4b-16gb": {
        "policy": QWEN3_4B,
        "reward": QWEN3_17B,
        "family": "qwen3",
        "tokens": (128, 300, 900, 1024),
        "rollouts": (64, 8, 1),
        "cap_gib": 16,
    },
    "middle": {
        "policy": MIDDLE,
        "reward": MIDDLE,
        "family": "qwen3",
        "tokens": (64, 80, 240, 256),
        "rollouts": (32, 8, 4),
        "cap_gib": None,
    },
    "microcosm": {
        "policy": TINY,
        "reward": TINY,
        "family": "qwen3",
        "tokens": (16, 16, 48, 64),
        "rollouts": (16, 4, 4),
        "cap_gib": None,
    },
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "<unknown>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
END, ANSWERER = SPECIAL.index("<|im_end|>"), SPECIAL.index("assistant")

# Tokens around a prompt: the start, role and end of its turn, the start and role of the answer
TEMPLATE_TOKENS = 5
LORA_RANK, SEED = 32, 0


def build_models(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes policy, reward model and prompts into the folder. Returns how long that took."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

    from grlo_lite.machine.device import float_dtype, this_device

    began, shape, folder = time.monotonic(), SHAPES[arguments.shape], arguments.folder
    device = this_device()
    more = {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None, "max_position_embeddings": 32_768}
    policy = Qwen3Config(**shape["policy"], **more)
    reward = (LlamaConfig if shape["family"] == "llama" else Qwen3Config)(**shape["reward"], **more)
    reward.num_labels = 1
    torch.manual_seed(SEED)
    for name, config, kind in (
        ("policy", policy, AutoModelForCausalLM),
        ("reward", reward, AutoModelForSequenceClassification),
    ):
        with torch.device(device):
            model = kind.from_config(config, dtype=float_dtype(device))
        model.save_pretrained(folder / name)
        del model
        tokenizer(config.vocab_size).save_pretrained(folder / name)
    shortest, longest = prompt_words(arguments)
    prompts = random_prompts(policy.vocab_size, shortest, longest, (arguments.steps + 1) * groups(shape))
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return {"seconds": time.monotonic() - began}


def tokenizer(words: int) -> Any:
    """A tokenizer of so many words, one token each, split at spaces; it has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), words))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unknown>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    whole.chat_template = TEMPLATE
    return whole


def random_prompts(words: int, shortest: int, longest: int, count: int) -> list[str]:
    """So many distinct prompts of evenly drawn words, between the shortest and the longest."""
    import random

    rng = random.Random(SEED)
    lengths = [rng.randint(shortest, longest) for _ in range(count)]
    return [" ".join(f"w{rng.randrange(len(SPECIAL), words)}" for _ in range(length)) for length in lengths]


def prompt_words(arguments: argparse.Namespace) -> tuple[int, int]:
    """Words of the shortest and of the longest prompt, which the template makes TEMPLATE_TOKENS longer."""
    prompt_tokens = SHAPES[arguments.shape]["tokens"][0]
    if not arguments.longest:
        return prompt_tokens // 2, prompt_tokens
    words = limits(arguments)["prompts"] - TEMPLATE_TOKENS
    return words, words


def limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe's limits: tokens of prompts and completions, micro-batch. With `--longest` those of the shipped
    recipe of the shape's name, where there is one.
    """
    from grlo_lite.recipe import loading as recipes

    if arguments.longest and arguments.shape in recipes.shipped():
        recipe = recipes.load(arguments.shape, [])
        return {
            "prompts": recipe.prompts.max_tokens,
            "completions": recipe.rollout.max_tokens,
            "micro": recipe.optimizer.micro_batch,
        }
    shape = SHAPES[arguments.shape]
    prompt_tokens, *_, longest = shape["tokens"]
    return {"prompts": prompt_tokens + 16, "completions": longest, "micro": shape["rollouts"][2]}


def groups(shape: dict[str, Any]) -> int:
    rollouts, group, _ = shape["rollouts"]
    return rollouts // group


def length_of(first: Any, words: int, median: int, percentile_95: int) -> Any:
    """The tokens of a completion, its end included, that begins with the token `first`: a quantile of a log-normal."""
    evenly = (first.double() - len(SPECIAL) + 0.5) / (words - len(SPECIAL))
    sigma = math.log(percentile_95 / median) / 1.645
    normal = math.sqrt(2) * (2 * evenly - 1).erfinv()
    return (math.log(median) + sigma * normal).exp().round().clamp(min=2)


def ending(shape: dict[str, Any], never: bool = False) -> Callable[[Any, Any], Any]:
    """A logits processor that ends each row at its own length, wherever it stands in whatever batch, or never."""
    _, median, percentile_95, _ = shape["tokens"]

    def process(ids_BT: Any, scores_BV: Any) -> Any:
        import torch

        words, columns = scores_BV.shape[1], ids_BT.shape[1]
        start_B = columns - (ids_BT == ANSWERER).flip(1).int().argmax(1)  # where the completion begins
        first_B = ids_BT.gather(1, start_B.clamp(max=columns - 1)[:, None])[:, 0]
        said_B = columns - start_B
        ends_B = (not never) & (said_B > 0) & (said_B + 1 >= length_of(first_B, words, median, percentile_95))
        scores_BV[:, : len(SPECIAL)] = -math.inf
        scores_BV[:, END] = torch.where(ends_B, math.inf, -math.inf)
        return torch.where(ends_B[:, None], scores_BV.clamp(min=-1e4, max=1e4), scores_BV)

    return process


def ends_rows(model: Any, shape: dict[str, Any], never: bool = False) -> None:
    """From now on `model.generate` ends each completion at its own length, or never."""
    from transformers import LogitsProcessorList

    plain = model.generate
    model.generate = lambda **inputs: plain(logits_processor=LogitsProcessorList([ending(shape, never)]), **inputs)


def ends_decoded_rows(shape: dict[str, Any], never: bool = False) -> None:
    """From now on the kit's decoder ends each completion at its own length, or never; what it draws from is then no
    longer the policy's, so the comparison with the policy is left out.
    """
    from grlo_lite.generation import decoding, twin_check

    _, median, percentile_95, _ = shape["tokens"]
    plain = decoding.Answers.take

    def take(answers: Any, logits_SV: Any, row_S: Any, count_S: Any) -> Any:
        first_S = answers.said_BT[row_S, 0]
        at_length_S = count_S + 1 >= length_of(first_S, logits_SV.shape[1], median, percentile_95)
        ends_S = (not never) & (count_S > 0) & at_length_S
        logits_SV[:, : len(SPECIAL)] = -math.inf
        logits_SV[ends_S] = -math.inf
        logits_SV[ends_S, END] = 0.0
        return plain(answers, logits_SV, row_S, count_S)

    decoding.Answers.take = take  # pyright: ignore[reportAttributeAccessIssue]
    twin_check.require_the_policys = lambda *_: None
