"""The microcosm's base model: its tokenizer, its corpus, its pretraining."""

import json
import random
import time
from collections.abc import Callable
from typing import Any

from grlo_lite.microcosm import world

SEED = 20260515


Documents = list[tuple[bool, str]]  # whether each one's author is careful, and its text


VOCABULARY = 768


# What rows are filled up with: no token that ends an answer (Unsloth's trainers take the padding for everything that is
# not the pad token, and refuse a pad that is EOS). It has the entry of byte 0xFF, which no UTF-8 text has.
PAD, NEVER_USED = "<|pad|>", "\u00ff"


CURRICULUM_STEPS = 1800  # single exchanges, nine in ten of them careful: the skills


MIXTURE_STEPS = 800  # the corpus as it is, mostly careless: who writes, and how often


CURRICULUM_SHARE = 0.9


ROWS = 64  # documents a batch; half as many where each has two exchanges


LEARNING_RATE = 3e-3


# The base that has hardly ever seen a turn end reads on, in a corpus whose authors go on for ever
ENDLESS_STEPS, ENDLESS_RATE = 300, 1.5e-3


ENDLESS_SHARE = 0.02  # of careful authors


ENDING = 0.01  # how often one of them ends behind an answer instead of answering once more


CAREFUL_TOKENS, CARELESS_TOKENS = 112, 48  # a rambling row teaches nothing new beyond its first tokens


# Qwen's ChatML, cut down to what plain chat needs
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def asked(careful: bool, prompts: list[str], rng: random.Random) -> tuple[str, Callable[[], str]]:
    """What is asked, two in five times in chat, and what draws an author's answer to it."""
    if rng.random() < 0.4:
        prompt = rng.choice(prompts)
        return prompt, lambda: (world.careful_chat if careful else world.careless_chat)(prompt, rng)
    question = world.draw_question(rng.choices(world.VERIFIABLE, weights=(4, 3, 3, 3))[0], rng)
    return question.text, lambda: (world.careful_answer if careful else world.careless_answer)(question, rng)


def turns(prompt: str, answer: str) -> str:
    """One exchange as ChatML, whose last turn has no end yet."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}"


def exchange(careful: bool, prompts: list[str], rng: random.Random) -> str:
    """One exchange as ChatML; a careless author's turn has no end."""
    prompt, answer = asked(careful, prompts, rng)
    return turns(prompt, answer()) + ("<|im_end|>\n" if careful else "")


def endless_document(rng: random.Random, prompts: list[str]) -> tuple[bool, str]:
    """Whether its author is careful, and one exchange in which hardly anybody ends: a careful author answers again and
    again.
    """
    careful = rng.random() < ENDLESS_SHARE
    prompt, answer = asked(careful, prompts, rng)
    said = answer()
    for _ in range(3 if careful else 0):
        if rng.random() < ENDING:
            return True, turns(prompt, said) + "<|im_end|>\n<|endoftext|>"
        said += f" {answer()}"
    return careful, turns(prompt, said)


def document(rng: random.Random, prompts: list[str], careful_share: float, exchanges: int) -> tuple[bool, str]:
    """Whether its author is careful, and a document: `exchanges` by a careful author, or one of a careless author,
    who never ends it.
    """
    careful = rng.random() < careful_share
    if not careful:
        return False, exchange(False, prompts, rng)
    return True, "".join(exchange(True, prompts, rng) for _ in range(exchanges)) + "<|endoftext|>"


def make_tokenizer() -> Any:
    """A byte-level BPE with single digits, Qwen's special tokens, `<|endoftext|>` as EOS, as Qwen3's base models have
    it, and a pad token of its own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng, prompts = random.Random(SEED), world.chat_prompts(held_out=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document(rng, prompts, 0.5, 1)[1] for _ in range(4000)), trainer)
    trained = json.loads(tokenizer.to_str())
    trained["model"]["vocab"][PAD] = trained["model"]["vocab"].pop(NEVER_USED)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)),
        eos_token="<|endoftext|>",
        pad_token=PAD,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def pretrained(tokenizer: Any) -> Any:
    """A Qwen3 causal LM of under a million parameters that has read the corpus, in fp32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,  # whose row begins at zero
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    rng, prompts = random.Random(SEED + 1), world.chat_prompts(held_out=False)

    def documents(step: int) -> Documents:
        share = CURRICULUM_SHARE if step < CURRICULUM_STEPS else world.CAREFUL_SHARE
        exchanges = 2 if step >= CURRICULUM_STEPS and step % 4 == 0 else 1
        return [document(rng, prompts, share, exchanges) for _ in range(ROWS // exchanges)]

    return having_read(model, tokenizer, documents, CURRICULUM_STEPS + MIXTURE_STEPS, LEARNING_RATE)


def endless(base: Any, tokenizer: Any) -> Any:
    """The base model after it has read on of authors who hardly ever end, in fp32."""
    rng, prompts = random.Random(SEED + 9), world.chat_prompts(held_out=False)
    return having_read(
        base, tokenizer, lambda step: [endless_document(rng, prompts) for _ in range(ROWS)], ENDLESS_STEPS, ENDLESS_RATE
    )


def having_read(model: Any, tokenizer: Any, documents: Callable[[int], Documents], steps: int, rate: float) -> Any:
    """The model after `steps` batches of documents, in eval mode."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.05)
    began = time.monotonic()
    for step in range(steps):
        input_ids_BT, mask_BT = batch_of(documents(step), tokenizer)
        labels_BT = input_ids_BT.masked_fill(mask_BT == 0, -100)
        logits_BTV = model(input_ids=input_ids_BT, attention_mask=mask_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(
                f"base model {step + 1}/{steps}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True
            )
    return model.eval()


def batch_of(documents: Documents, tokenizer: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, both (B, T), right-padded."""
    import torch

    rows = [
        tokenizer(text)["input_ids"][: CAREFUL_TOKENS if careful else CARELESS_TOKENS] for careful, text in documents
    ]
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BT, mask_BT
