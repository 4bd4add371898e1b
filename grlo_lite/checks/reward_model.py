"""What the doctor looks at in a reward model: head, BOS, pooling, template, order, golden scores."""

import ast
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS, Check, outcome
from grlo_lite.microcosm import world

# Model cards that print their model's scores of two answers; the texts are read off the card itself
GOLDEN_SCORES = {"Skywork/Skywork-Reward-V2-Llama-3.1-8B": (23.0, 3.59375)}


CLEAR_PAIRS = Path(__file__).with_name("clear_pairs.yaml")
GOLDEN_TOLERANCE = {"nf4": 3.0, "none": 0.5}  # reward units; the two scores lie 19.4 apart


def reward_checks(scorer: Any, pairs: list[tuple[str, str, str]]) -> list[Check]:
    """What can be told of a loaded reward model without any other: its head, its BOS, its pooling, its template, its
    taste.
    """
    return [
        head_check(scorer),
        bos_check(scorer, pairs),
        pooling_check(scorer, pairs),
        template_check(scorer.tokenizer),
        order_check(scorer, pairs),
    ]


def head_check(scorer: Any) -> Check:
    """The `score` head must be in fp32: in 4 bits, or in bf16 with its steps of 0.125 at 16, close answers look
    equal.
    """
    import torch

    weight = scorer.model.score.weight
    found = f"{type(scorer.model.score).__name__}, {str(weight.dtype).removeprefix('torch.')}"
    mend = "keep `score` out of the quantization and cast it to fp32"
    return outcome("head in fp32", weight.dtype == torch.float32, found, mend)


def bos_check(scorer: Any, pairs: list[tuple[str, str, str]]) -> Check:
    """Exactly one BOS, in front, where the tokenizer has one of its own; where it is the mark of a turn, as many as the
    template writes.
    """
    tokenizer, name = scorer.tokenizer, "one BOS"
    bos, asked = tokenizer.bos_token_id, conversation(*pairs[0][:2])
    if bos is None:
        return Check(name, NOT_APPLICABLE, "the tokenizer has none")
    ids = scorer.token_ids(asked)
    count, mend = ids.count(bos), "render the chat template to text and tokenize it with add_special_tokens=False"
    written, longer = (
        tokenizer.apply_chat_template(turns, tokenize=False).count(tokenizer.bos_token)
        for turns in (asked, asked + asked)
    )
    if longer > written:
        found = f"{tokenizer.bos_token} marks the turns: {count}, and the template writes {written}"
        return outcome(name, count == written, found, mend)
    if count == 1 and ids[0] == bos:
        return Check(name, PASS, "one, in front")
    if count == 0 and not scorer.bos:
        return Check(name, NOT_APPLICABLE, "neither the tokenizer nor the template puts one")
    return Check(name, FAIL, f"{count}" if count != 1 else "one, but not in front", mend)


def pooling_check(scorer: Any, pairs: list[tuple[str, str, str]]) -> Check:
    """A padded batch must give the scores that its rows get alone: within 1e-3 in fp32, within rounding in 16 bits."""
    import torch

    conversations = [conversation(q, a) for q, good, bad in pairs[:8] for a in (good, bad, f"{good} {bad}")]
    together = np.array(scorer.score(conversations))
    alone = np.array([scorer.score([c])[0] for c in conversations])
    worst = float(np.abs(together - alone).max())
    allowed = 1e-3 if scorer.model.dtype == torch.float32 else 0.05 * max(1.0, float(np.ptp(alone)))
    mend = "pool at the last token of the attention mask"
    return outcome("pooling under padding", worst <= allowed, f"largest difference {worst:.2g}", mend)


def template_check(tokenizer: Any) -> Check:
    """The chat template must keep both texts, tell the speakers apart, and use marks that are tokens of this
    tokenizer.
    """
    name, mend = "chat template", "use the chat template that belongs to this reward model's tokenizer"
    text = tokenizer.apply_chat_template(conversation("a question", "an answer"), tokenize=False)
    asked, answered = text.find("a question"), text.find("an answer")
    if not 0 <= asked < answered:
        return Check(name, FAIL, "it loses or reorders what was said", mend)
    if not text[asked + len("a question") : answered].strip():
        return Check(name, FAIL, "nothing stands between the two speakers", mend)
    marks = set(re.findall(r"<[^<>\s]+>|\[/?[A-Z_]+\]", text))
    split = sorted(mark for mark in marks if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) != 1)
    if split:
        return Check(name, FAIL, f"{', '.join(split)} are no tokens of this tokenizer", mend)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids).strip() != text.strip():
        return Check(name, FAIL, "its text does not survive tokenizing and decoding", mend)
    return Check(name, PASS, f"{len(marks)} marks, each one token")


def order_check(scorer: Any, pairs: list[tuple[str, str, str]]) -> Check:
    """Of 40 clear pairs a good judge has 36 or more in order. Fewer than 26 may be chance, and 14 or fewer are not."""
    good_N, bad_N = pair_scores(scorer, pairs)
    right, name = int((good_N > bad_N).sum()), "order of clear pairs"
    found = f"{right} of {len(pairs)}"
    if right >= 0.9 * len(pairs):
        return Check(name, PASS, found)
    if right >= 0.65 * len(pairs):
        weak = "its taste is weak, so learning will be slow and noisy; a larger reward model has more"
        return Check(name, PASS, found, weak)
    if right > 0.35 * len(pairs):
        return Check(name, FAIL, found, "do not train on it: it tells good answers from bad ones no better than chance")
    return Check(name, FAIL, found, "do not train on it: it prefers bad answers")


def golden_check(
    name: str, quantization: str, scorer: Any, texts: Callable[[str], tuple[str, str, str] | None]
) -> Check:
    """The two scores that the model's card prints, within what 4 bits may move them."""
    golden = GOLDEN_SCORES.get(name)
    if golden is None:
        return Check("golden scores", NOT_APPLICABLE, "its card prints none that are known here")
    found = texts(name)
    if found is None:
        return Check("golden scores", NOT_APPLICABLE, "its card could not be read; try again online")
    prompt, *answers = found
    scores = scorer.score([conversation(prompt, answer) for answer in answers])
    said = f"{scores[0]:.2f} and {scores[1]:.2f}, the card has {golden[0]:.2f} and {golden[1]:.2f}"
    near = all(abs(s - g) <= GOLDEN_TOLERANCE[quantization] for s, g in zip(scores, golden, strict=True))
    return outcome("golden scores", near, said, "the forward is not the card's: see the rows above")


def card_texts(name: str) -> tuple[str, str, str] | None:
    """The prompt and the two answers of the example on a Hub model's card, or None where it cannot be fetched or
    read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        card = Path(hf_hub_download(name, "README.md")).read_text(encoding="utf-8")
    except (EntryNotFoundError, LocalEntryNotFoundError, OSError):
        return None
    return example_of(card)


def example_of(card: str) -> tuple[str, str, str] | None:
    """The string literals that a model card's example assigns to `prompt`, `response1` and `response2`."""
    found = {}
    for key, literal in re.findall(r'^(prompt|response1|response2) = (".*")$', card, re.MULTILINE):
        found.setdefault(key, ast.literal_eval(literal))
    return (found["prompt"], found["response1"], found["response2"]) if len(found) == 3 else None


def unpatched_check(before: tuple | None, after: tuple) -> Check:
    """Loading the policy must not change the reward model's scores; Unsloth patches classes for the whole process."""
    name = "scores beside the policy"
    if before is None:
        return Check(
            name, NOT_APPLICABLE, "the policy was loaded first, as asked; the rows above were measured after it"
        )
    spread = max(1.0, float(np.ptp(np.concatenate(before))))
    worst = float(np.abs(np.concatenate(after) - np.concatenate(before)).max())
    mend = "use backend=transformers, or a reward model of another family than the policy"
    return outcome(name, worst <= 0.01 * spread, f"largest change {worst:.2g}", mend)


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pair_scores(scorer: Any, pairs: list[tuple[str, str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the good and of the bad answers, each of shape (N,)."""
    scores = scorer.score([conversation(q, a) for q, good, bad in pairs for a in (good, bad)])
    return np.array(scores[::2]), np.array(scores[1::2])


def clear_pairs(judge: str) -> list[tuple[str, str, str]]:
    """Forty (question, good answer, bad answer); in the microcosm's own language for its judges, else in English."""
    if not judge.startswith("microcosm"):
        kinds = yaml.safe_load(CLEAR_PAIRS.read_text(encoding="utf-8"))
        return [tuple(pair) for pairs in kinds.values() for pair in pairs]
    rng = random.Random("doctor")
    asked = rng.sample(world.chat_prompts(held_out=True), 40)
    return [(q, world.careful_chat(q, rng), " ".join(world.careless_chat(q, rng).split()[:20])) for q in asked]
