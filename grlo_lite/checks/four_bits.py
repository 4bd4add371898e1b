"""How far 4 bits move a reward model's scores of the policy's own answers."""

from itertools import combinations
from typing import Any

import numpy as np

from grlo_lite import prompts
from grlo_lite.checks.check import Check, outcome
from grlo_lite.recipe.schema import Recipe


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
    mend = "use reward.quantization=none, or a larger reward model"
    return outcome("4-bit against 16-bit", bool(kendall >= 0.8 and flips <= 0.1), found, mend)


def flipped_pairs(a_N: np.ndarray, b_N: np.ndarray, group_size: int) -> float:
    """Of the pairs within a group that differ in `b_N`, the share whose order is another one in `a_N`."""
    flips = total = 0
    for start in range(0, len(a_N), group_size):
        for i, j in combinations(range(start, start + group_size), 2):
            if b_N[i] != b_N[j]:
                total += 1
                flips += bool((a_N[i] - a_N[j]) * (b_N[i] - b_N[j]) <= 0)
    return flips / total if total else 0.0


def policy_conversations(
    recipe: Recipe, policy: Any, rows: list[prompts.Messages], count: int
) -> list[list[prompts.Messages]]:
    """What the untrained policy answers to `count` of the recipe's prompts, four times each: what training will score
    first.
    """
    from grlo_lite.generation.answers import rows_at_once, sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import chat_template

    asked = [row for row in prompts.ordered(rows, count, recipe.seed) for _ in range(4)]
    texts = [chat_template.formatted(policy.tokenizer, row) for row in asked]
    policy.model.eval()
    at_once = rows_at_once(policy.model, recipe.rollout.batch)
    said = sampled_answers(policy, texts, Sampling(recipe.rollout.max_tokens), at_once, recipe.seed)
    answered = chat_template.with_answers(asked, [answer.text for answer in said])
    return [answered[i : i + 4] for i in range(0, len(answered), 4)]
