"""Checks the machine and a recipe's reward model: `python -m grlo_lite.doctor [RECIPE] [section.key=value …]`.

Each check passes, fails with what to do, or does not apply. A reward model that is silently wrong trains a policy
without an error.
"""

import argparse
import ast
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from grlo_lite import parts
from grlo_lite import recipe as recipes
from grlo_lite.cli import run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.recipe import Recipe

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "n/a"

# Model cards that print their model's scores of two answers; the texts are read off the card itself
GOLDEN_SCORES = {"Skywork/Skywork-Reward-V2-Llama-3.1-8B": (23.0, 3.59375)}
GOLDEN_TOLERANCE = {"nf4": 3.0, "none": 0.5}  # reward units; the two scores lie 19.4 apart


@dataclass(frozen=True)
class Check:
    name: str
    status: str
    found: str
    mend: str = ""


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 0 where nothing failed, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m grlo_lite.doctor", description="Checks the machine and the reward model."
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE | section.key=value")
    parser.add_argument(
        "--after-policy", action="store_true", help="load the policy first, to catch the forwards it patches"
    )
    parser.add_argument("--prompts", type=int, default=32, help="prompts for 4-bit against 16-bit; 0 leaves that out")
    arguments = parser.parse_args(argv)
    named = [word for word in arguments.words if "=" not in word]
    recipe = recipes.load(named[0] if named else "microcosm", [word for word in arguments.words if "=" in word])
    checks = machine_checks(Path.cwd()) + diagnosis(recipe, arguments.after_policy, arguments.prompts)
    print(table(checks))
    return int(any(check.status == FAIL for check in checks))


# --- the machine -----------------------------------------------------------------------------------------------------


def machine_checks(folder: Path) -> list[Check]:
    """GPU, driver, bf16, disk, and versions that do not fit together."""
    import torch

    from grlo_lite import environment

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        size = f"{properties.total_memory / 2**30:.1f} GiB"
        gpu = Check("GPU", PASS, f"{properties.name}, {size}, CUDA {torch.version.cuda}, driver {environment.driver()}")
        mend = "fp16 is used instead; choose a recipe for a card before Ampere, such as a T4's"
        bf16 = torch.cuda.get_device_capability(0) >= (8, 0)
        native = Check(
            "bf16", PASS if bf16 else NOT_APPLICABLE, "native" if bf16 else "not native", "" if bf16 else mend
        )
    else:
        gpu = Check("GPU", NOT_APPLICABLE, "none: the microcosm runs on the CPU, larger models want a GPU")
        native = Check("bf16", NOT_APPLICABLE, "fp32 on a CPU")
    free = shutil.disk_usage(folder).free / 2**30
    disk = Check(
        "disk", PASS if free >= 5 else FAIL, f"{free:.0f} GiB free here", "" if free >= 5 else "free 5 GiB or more"
    )
    return [gpu, native, disk, versions_check(requires("grlo-lite") or [], version)]


def versions_check(requirements: list[str], installed: Callable[[str], str]) -> Check:
    """Whether what is installed is within the ranges that were run."""
    from packaging.requirements import Requirement

    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, wanted {requirement.specifier}")
    return Check(
        "versions", FAIL if wrong else PASS, "; ".join(wrong) or "within range", "pip install -e ." if wrong else ""
    )


# --- the reward model ------------------------------------------------------------------------------------------------


def diagnosis(recipe: Recipe, after_policy: bool, prompt_count: int) -> list[Check]:
    """The reward model's checks, by itself and beside the policy, and how far 4 bits move its scores."""
    settle_libraries(offline=parts.needs_no_hub(recipe))
    device, backend = parts.device_and_backend(recipe)
    policy = parts.load_policy(recipe, device, backend) if after_policy else None
    judge = recipe.reward.judges[0]
    try:
        scorer = parts.load_judge(recipe, judge, device)
    except BadInput as error:
        return [Check("one logit", FAIL, str(error), "choose another reward model")]
    pairs = clear_pairs(judge.name)
    checks = [Check("one logit", PASS, type(scorer.model).__name__), *reward_checks(scorer, pairs)]
    checks.append(golden_check(judge.name, recipe.reward.quantization, scorer, card_texts))
    if not prompt_count:
        return checks
    before = None if after_policy else pair_scores(scorer, pairs)
    policy = policy or parts.load_policy(recipe, device, backend)
    checks.append(unpatched_check(before, pair_scores(scorer, pairs)))
    conversations = policy_conversations(recipe, policy, prompt_count)
    four_bit = scorer.score([c for group in conversations for c in group])
    del policy, scorer
    if recipe.reward.quantization == "none":
        return [*checks, Check("4-bit against 16-bit", NOT_APPLICABLE, "the recipe does not quantize its reward model")]
    whole = parts.load_judge(recipe, judge.model_copy(update={"quantization": "none"}), device)
    sixteen_bit = whole.score([c for group in conversations for c in group])
    return [*checks, fidelity_check(np.array(four_bit), np.array(sixteen_bit), len(conversations[0]))]


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
    if weight.dtype == torch.float32:
        return Check("head in fp32", PASS, found)
    return Check("head in fp32", FAIL, found, "keep `score` out of the quantization and cast it to fp32")


def bos_check(scorer: Any, pairs: list[tuple[str, str, str]]) -> Check:
    """Exactly one BOS, in front, where the tokenizer has one of its own."""
    bos = scorer.tokenizer.bos_token_id
    ids = scorer.token_ids(conversation(*pairs[0][:2]))
    if bos is None:
        return Check("one BOS", NOT_APPLICABLE, "the tokenizer has none")
    count = ids.count(bos)
    if count == 1 and ids[0] == bos:
        return Check("one BOS", PASS, "one, in front")
    if count == 0 and not scorer.bos:
        return Check("one BOS", NOT_APPLICABLE, "neither the tokenizer nor the template puts one")
    return Check(
        "one BOS", FAIL, f"{count}", "render the chat template to text and tokenize it with add_special_tokens=False"
    )


def pooling_check(scorer: Any, pairs: list[tuple[str, str, str]]) -> Check:
    """A padded batch must give the scores that its rows get alone: within 1e-3 in fp32, within rounding in 16 bits."""
    import torch

    conversations = [conversation(q, a) for q, good, bad in pairs[:8] for a in (good, bad, f"{good} {bad}")]
    together = np.array(scorer.score(conversations))
    alone = np.array([scorer.score([c])[0] for c in conversations])
    worst = float(np.abs(together - alone).max())
    allowed = 1e-3 if scorer.model.dtype == torch.float32 else 0.05 * max(1.0, float(np.ptp(alone)))
    if worst <= allowed:
        return Check("pooling under padding", PASS, f"largest difference {worst:.1e}")
    return Check(
        "pooling under padding", FAIL, f"largest difference {worst:.2g}", "pool at the last token of the attention mask"
    )


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
    """Of 40 clear pairs the good answer must score higher in 36 or more."""
    good_N, bad_N = pair_scores(scorer, pairs)
    right = int((good_N > bad_N).sum())
    if right >= 0.9 * len(pairs):
        return Check("order of clear pairs", PASS, f"{right} of {len(pairs)}")
    return Check("order of clear pairs", FAIL, f"{right} of {len(pairs)}", "do not train on it: it prefers bad answers")


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
    return Check(
        "golden scores",
        PASS if near else FAIL,
        said,
        "" if near else "the forward is not the card's: see the rows above",
    )


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
    if worst <= 0.01 * spread:
        return Check(name, PASS, f"largest change {worst:.1e}")
    mend = "use backend=transformers, or a reward model of another family than the policy"
    return Check(name, FAIL, f"largest change {worst:.2g}", mend)


def fidelity_check(four_bit_N: np.ndarray, sixteen_bit_N: np.ndarray, group_size: int) -> Check:
    """How far 4 bits move the scores of the policy's own answers, and whether that changes what is learnt.

    A pair flips where two answers to the same prompt change order. Both arrays have shape (N,), groups standing
    together.
    """
    from scipy import stats

    spearman, _ = np.array(stats.spearmanr(four_bit_N, sixteen_bit_N))
    kendall, _ = np.array(stats.kendalltau(four_bit_N, sixteen_bit_N))
    flips = flipped_pairs(four_bit_N, sixteen_bit_N, group_size)
    scale, shift = np.polyfit(sixteen_bit_N, four_bit_N, 1)
    found = (
        f"{len(four_bit_N)} answers: Spearman {spearman:.3f}, Kendall {kendall:.3f}, {flips:.1%} of pairs flip, "
        f"scale {scale:.2f}, shift {shift:+.2f}"
    )
    if kendall >= 0.8 and flips <= 0.1:
        return Check("4-bit against 16-bit", PASS, found)
    return Check("4-bit against 16-bit", FAIL, found, "use reward.quantization=none, or a larger reward model")


def flipped_pairs(a_N: np.ndarray, b_N: np.ndarray, group_size: int) -> float:
    """Of the pairs within a group that differ in `b_N`, the share whose order is another one in `a_N`."""
    flips = total = 0
    for start in range(0, len(a_N), group_size):
        for i, j in combinations(range(start, start + group_size), 2):
            if b_N[i] != b_N[j]:
                total += 1
                flips += bool((a_N[i] - a_N[j]) * (b_N[i] - b_N[j]) <= 0)
    return flips / total if total else 0.0


# --- what is scored --------------------------------------------------------------------------------------------------


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pair_scores(scorer: Any, pairs: list[tuple[str, str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the good and of the bad answers, each of shape (N,)."""
    scores = scorer.score([conversation(q, a) for q, good, bad in pairs for a in (good, bad)])
    return np.array(scores[::2]), np.array(scores[1::2])


def clear_pairs(judge: str) -> list[tuple[str, str, str]]:
    """Forty (question, good answer, bad answer); in the microcosm's own language for its judges, else in English."""
    from grlo_lite.doctor_pairs import PAIRS
    from grlo_lite.microcosm import world

    if not judge.startswith("microcosm"):
        return list(PAIRS)
    rng = random.Random("doctor")
    asked = rng.sample(world.chat_prompts(held_out=True), 40)
    return [(q, world.careful_chat(q, rng), " ".join(world.careless_chat(q, rng).split()[:20])) for q in asked]


def policy_conversations(recipe: Recipe, policy: Any, count: int) -> list[list[list[dict[str, str]]]]:
    """What the untrained policy answers to `count` of the recipe's prompts, four times each: what training will score
    first.
    """
    from grlo_lite import measure, prompts
    from grlo_lite import policy as policies

    rows = prompts.ordered(parts.prompt_rows(recipe)[0], count, recipe.seed)
    texts = [policies.formatted(policy.tokenizer, row) for row in rows for _ in range(4)]
    policy.model.eval()
    said = measure.sampled_answers(
        policy.model, policy.tokenizer, texts, seed=recipe.seed, **parts.sampling(recipe, policy)
    )
    answered = [
        [*row, {"role": "assistant", "content": text}]
        for row, text in zip([r for r in rows for _ in range(4)], said, strict=True)
    ]
    return [answered[i : i + 4] for i in range(0, len(answered), 4)]


def table(checks: list[Check]) -> str:
    """The checks, a line each; what to do stands below a failed one."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status.ljust(4)}  {check.name.ljust(width)}  {check.found}")
        if check.mend:
            lines.append(f"{'':4}  {'':{width}}  → {check.mend}")
    failed = sum(check.status == FAIL for check in checks)
    return "\n".join(
        [*lines, f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks, none failed"]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
