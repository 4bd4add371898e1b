"""The microcosm's two judges, and the preference pairs that they learn from."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grlo_lite.microcosm import world

PAIRS = 6000


REWARD_STEPS = 150


# The worse answers from which each judge has learnt: the held-out one never saw padding or repetition
JUDGES = {
    "reward": ("careless", "repetition", "no end", "off topic", "padding", "half careless"),
    "heldout": ("careless", "no end", "off topic", "off topic", "off topic", "half careless"),
}


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
