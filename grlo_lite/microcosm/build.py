"""Makes the microcosm's assets: `python -m grlo_lite.microcosm.build [DIR]`, under ten minutes on two CPU cores; then
its finished run with `--demo`, in a minute.

The tokenizer and the base model come from the corpus that `world.py` describes. The reward model is that base model
with a score head, made with TRL's `RewardTrainer` on preference pairs from chat alone. Everything is seeded: the same
versions on the same machine give the same bytes, and `manifest.json` holds their hashes beside the counts and
accuracies that were measured.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grlo_lite.microcosm import ASSETS, DEMO, world

SEED = 20260515
VOCABULARY = 768
CURRICULUM_STEPS = 1800  # single exchanges, nine in ten of them careful: the skills
MIXTURE_STEPS = 800  # the corpus as it is, mostly careless: who writes, and how often
CURRICULUM_SHARE = 0.9
ROWS = 64  # documents a batch; half as many where each has two exchanges
LEARNING_RATE = 3e-3
CAREFUL_TOKENS, CARELESS_TOKENS = 112, 48  # a rambling row teaches nothing new beyond its first tokens
PAIRS = 6000
REWARD_STEPS = 150
# The worse answers from which each judge has learnt: the held-out one never saw padding or repetition
JUDGES = {
    "reward": ("careless", "repetition", "no end", "off topic", "padding", "half careless"),
    "heldout": ("careless", "no end", "off topic", "off topic", "off topic", "half careless"),
}
QUESTIONS = 300

# Qwen's ChatML, cut down to what plain chat needs
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    if sys.argv[1:] == ["--demo"]:
        demo()
        return
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS
    began = time.monotonic()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "policy")
    save(pretrained(tokenizer), folder / "policy")
    for seed, (judge, kinds) in enumerate(JUDGES.items(), SEED + 2):
        save(reward_model(folder / "policy", tokenizer, kinds, seed), folder / judge)
        tokenizer.save_pretrained(folder / judge)
    manifest = {"seed": SEED, **counts(), **measured(folder), "sha256": hashes(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{folder / 'manifest.json'} after {time.monotonic() - began:.0f} s")


def demo() -> None:
    """Trains the shipped recipe on the package's own assets and keeps what the app shows of a run."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "demo"
        command = [sys.executable, "-m", "grlo_lite.train", "microcosm", "--run-dir", str(made)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        shutil.rmtree(made / "checkpoints")
        (made / "adapter" / "README.md").unlink()  # it names a folder of the machine it was made on
        shutil.rmtree(DEMO, ignore_errors=True)
        shutil.copytree(made, DEMO)
    _set(DEMO / "adapter" / "adapter_config.json", base_model_name_or_path="microcosm")
    _set(ASSETS / "manifest.json", sha256=hashes(ASSETS))


def _set(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


# --- the base model --------------------------------------------------------------------------------------------------


def exchange(careful: bool, prompts: list[str], rng: random.Random) -> str:
    """One exchange as ChatML, two in five of them chat; a careless author's turn has no end."""
    if rng.random() < 0.4:
        prompt = rng.choice(prompts)
        answer = (world.careful_chat if careful else world.careless_chat)(prompt, rng)
    else:
        question = world.draw_question(rng.choices(world.VERIFIABLE, weights=(4, 3, 3, 3))[0], rng)
        prompt, answer = question.text, (world.careful_answer if careful else world.careless_answer)(question, rng)
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}" + (
        "<|im_end|>\n" if careful else ""
    )


def document(rng: random.Random, prompts: list[str], careful_share: float, exchanges: int) -> tuple[bool, str]:
    """Whether its author is careful, and a document: `exchanges` by a careful author, or one of a careless author,
    who never ends it.
    """
    careful = rng.random() < careful_share
    if not careful:
        return False, exchange(False, prompts, rng)
    return True, "".join(exchange(True, prompts, rng) for _ in range(exchanges)) + "<|endoftext|>"


def make_tokenizer() -> Any:
    """A byte-level BPE with single digits, Qwen's special tokens and, as Qwen3's base models have it, `<|endoftext|>`
    as EOS and pad.
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def pretrained(tokenizer: Any) -> Any:
    """A Qwen3 causal LM of under a million parameters that has read the corpus, in fp32."""
    import torch
    from torch.nn.functional import cross_entropy
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
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    steps = CURRICULUM_STEPS + MIXTURE_STEPS
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.05)
    rng, prompts, began = random.Random(SEED + 1), world.chat_prompts(held_out=False), time.monotonic()
    for step in range(steps):
        share = CURRICULUM_SHARE if step < CURRICULUM_STEPS else world.CAREFUL_SHARE
        exchanges = 2 if step >= CURRICULUM_STEPS and step % 4 == 0 else 1
        documents = [document(rng, prompts, share, exchanges) for _ in range(ROWS // exchanges)]
        input_ids_BT, mask_BT = batch_of(documents, tokenizer)
        labels_BT = input_ids_BT.masked_fill(mask_BT == 0, -100)
        logits_BTV = model(input_ids=input_ids_BT, attention_mask=mask_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(
                f"base model {step + 1}/{steps}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True
            )
    return model.eval()


def batch_of(documents: list[tuple[bool, str]], tokenizer: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, both (B, T), right-padded."""
    import torch

    rows = [
        tokenizer(text)["input_ids"][: CAREFUL_TOKENS if careful else CARELESS_TOKENS] for careful, text in documents
    ]
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BT, mask_BT


# --- the reward model ------------------------------------------------------------------------------------------------


def worse_answers(prompt: str, good: str, rng: random.Random) -> dict[str, str]:
    """What a careful answer to a chat prompt is preferred to, by kind: the careless answer, and five hard negatives."""
    sentences = world.chat_sentences(world.topics_of(prompt), rng)
    others = rng.sample([topic for topic in world.TOPICS if topic not in prompt], 2)
    opening, closing = rng.choice(world.CAREFUL_OPENINGS), rng.choice(world.CAREFUL_CLOSINGS)
    words = good.split(" ")
    careless = world.careless_chat(prompt, rng).split(" ")
    return {
        "careless": " ".join(careless[: rng.randint(8, 40)]),
        "repetition": " ".join((opening, sentences[0], sentences[0], *[sentences[0]] * rng.randint(0, 2), closing)),
        "no end": " ".join(words[: rng.randint(3, len(words) - 3)]),
        "off topic": world.careful_chat(f"the {others[0]}" if rng.random() < 0.5 else f"{others[0]} {others[1]}", rng),
        "padding": " ".join((opening, *sentences, *rng.choices(world.CAREFUL_CLOSINGS, k=rng.randint(3, 5)))),
        "half careless": " ".join((opening, sentences[0], *careless[: rng.randint(5, 25)])),
    }


def preference_pairs(held_out: bool, kinds: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` pairs in TRL's conversational preference format, each with the kind of its rejected answer; from chat
    alone.
    """
    rng, prompts, pairs = random.Random(seed), world.chat_prompts(held_out), []
    for number in range(count):
        prompt = rng.choice(prompts)
        good = world.careful_chat(prompt, rng)
        worse = worse_answers(prompt, good, rng)
        kind = kinds[number % len(kinds)]
        asked = [{"role": "user", "content": prompt}]
        pairs.append(
            {
                "chosen": [*asked, {"role": "assistant", "content": good}],
                "rejected": [*asked, {"role": "assistant", "content": worse[kind]}],
                "kind": kind,
            }
        )
    return pairs


def reward_model(base: Path, tokenizer: Any, kinds: Sequence[str], seed: int) -> Any:
    """The base model with a score head, trained on preference pairs whose rejected answers are of these kinds."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    pairs = [{key: pair[key] for key in ("chosen", "rejected")} for pair in preference_pairs(False, kinds, PAIRS, seed)]
    with tempfile.TemporaryDirectory() as scratch:
        config = RewardConfig(
            output_dir=scratch,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=32,
            max_steps=REWARD_STEPS,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            center_rewards_coefficient=0.01,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
        )
        trainer.train()
    return model.eval()


# --- what comes out --------------------------------------------------------------------------------------------------


def save(model: Any, folder: Path) -> None:
    """Writes the weights as bf16 safetensors, half the bytes of fp32."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)


def counts() -> dict[str, Any]:
    """How much of each kind of data went in."""
    return {
        "pretraining_documents": ROWS * (CURRICULUM_STEPS + MIXTURE_STEPS * 3 // 4) + ROWS // 2 * (MIXTURE_STEPS // 4),
        "preference_pairs": PAIRS,
        "chat_prompts": {"train": len(world.chat_prompts(False)), "held_out": len(world.chat_prompts(True))},
    }


def measured(folder: Path) -> dict[str, Any]:
    """Accuracies in NF4, as the kit loads the models.

    Of the base, sampled at temperature 1 as in training; of the base led into a careful opening, greedy, which is what
    there is to unlock, and sampled; and each judge's share of held-out pairs in which it prefers the better answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grlo_lite import policy, quantization, reward
    from grlo_lite.generation import Sampling, answers, seeded

    device = torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = quantization.from_pretrained(AutoModelForCausalLM, str(folder / "policy"), "main", "nf4", device).eval()
    model.generation_config.eos_token_id = policy.stop_token_ids(tokenizer)

    def accuracy(domain: str, opening: str, temperature: float) -> float:
        asked = world.exam(domain, QUESTIONS, seed=0)
        texts = [policy.formatted(tokenizer, [{"role": "user", "content": q.text}]) + opening for q in asked]
        with seeded(model, 0):
            said = answers(model, tokenizer, texts, Sampling(max_tokens=48, temperature=temperature))
        return round(sum(world.is_right(q, a.text) for q, a in zip(asked, said, strict=True)) / QUESTIONS, 4)

    def pair_accuracy(judge: str) -> dict[str, float]:
        kinds = sorted({kind for mix in JUDGES.values() for kind in mix})
        pairs = preference_pairs(True, kinds, 200 * len(kinds), SEED + 1000)
        model = reward.load(str(folder / judge), "main", "nf4", device, max_tokens=512, tokens_per_batch=16_384)
        chosen, rejected = (model.score([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
        right = dict.fromkeys(kinds, 0)
        for pair, good, bad in zip(pairs, chosen, rejected, strict=True):
            right[pair["kind"]] += good > bad
        return {kind: hits / 200 for kind, hits in right.items()}

    return {
        "questions": QUESTIONS,
        "base_accuracy": {domain: accuracy(domain, "", 1.0) for domain in world.VERIFIABLE},
        "careful_accuracy": {domain: accuracy(domain, world.CAREFUL_OPENINGS[0], 0.0) for domain in world.VERIFIABLE},
        "careful_accuracy_sampled": {d: accuracy(d, world.CAREFUL_OPENINGS[0], 1.0) for d in world.VERIFIABLE},
        "pair_accuracy": {judge: pair_accuracy(judge) for judge in JUDGES},
    }


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the assets but the manifest."""
    from grlo_lite.rundir import file_sha256

    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


if __name__ == "__main__":
    main()
