"""How good the judges of `real_language.py` are where everything about them is chosen without the prompts they judge.

    OMP_NUM_THREADS=1 python benchmarks/judge_choice.py --data preferences.jsonl [--work DIR]

Nested cross-validation: of five folds of prompts each is left out once. Among the other four, four-fold
cross-validation chooses the layer, the strength of regularization and the weight of the policy's own answers. The head
so chosen is then fitted to the four folds, and asked about the fifth, which had no say in it. The best is told in two
ways, both in the result: by the mean of two shares in order, of the given pairs and of real answers against the
policy's own, and by the given pairs among those that have `ENOUGH` of the policy's own.

On one CPU core some ten minutes for the states of five layers, which are kept, and five for the heads.
"""

import argparse
import itertools
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import real_models as models
from tqdm import tqdm

LAYERS = (12, 14, 16, 18, 20)
STRENGTHS = (1e-3, 3e-3)
OWN_WEIGHTS = (0.3, 0.5, 1.0)
Choice = tuple[int, float, float]
CHOICES: list[Choice] = list(itertools.product(LAYERS, STRENGTHS, OWN_WEIGHTS))
ENOUGH = 0.85
QUALITIES: dict[str, Callable[[float, float], float]] = {
    "mean": lambda given, own: (given + own) / 2,
    "given_where_enough": lambda given, own: given + min(own - ENOUGH, 0) * 100,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/real-language"), help="real_language.py's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the JSON goes")
    arguments = parser.parse_args()
    of_layer = preferences_by_layer(arguments.work / "policy", arguments.data, arguments.work / "preferences.npz")
    found = nested(of_layer)
    print(json.dumps(found, indent=1))
    (arguments.out / f"judge-choice-{platform.machine()}-cpu.json").write_text(
        json.dumps(found, indent=1) + "\n", encoding="utf-8"
    )


def preferences_by_layer(policy: Path, data: Path, kept: Path) -> dict[int, models.Preferences]:
    """The same answers, by the states of each layer."""
    if not policy.is_dir():
        models.make_policy(policy)
    one = models.preferences(policy, data, kept)
    states = kept.with_name("states-by-layer.npy")
    if not states.is_file():
        np.save(states, models.mean_states(policy, models.answers_of(one.rows + one.own), LAYERS))
    return {layer: one._replace(states_NH=states_NH) for layer, states_NH in zip(LAYERS, np.load(states), strict=True)}


def nested(of_layer: dict[int, models.Preferences]) -> dict[str, dict[str, Any]]:
    """By each way to tell the best, the shares in order over all folds, what was chosen in each, and how far the share
    of the given pairs would vary with other prompts: twice the standard error, each prompt's pairs taken together.
    """
    one = of_layer[LAYERS[0]]
    prompts = {row["prompt"] for row in one.rows}
    asked: list[str] = []
    given: dict[str, list[bool]] = {name: [] for name in QUALITIES}
    own: dict[str, list[bool]] = {name: [] for name in QUALITIES}
    chosen: dict[str, list[dict[str, float]]] = {name: [] for name in QUALITIES}
    for left_out in tqdm(models.folds(prompts), desc="folds"):
        known = prompts - left_out
        inner = models.folds(known, models.FOLDS - 1)
        shares = {choice: shares_in_order(of_layer, choice, known, inner) for choice in CHOICES}
        asked += [row["prompt"] for row in one.rows if row["prompt"] in left_out]
        for name, quality in QUALITIES.items():
            choice = max(CHOICES, key=lambda choice: quality(*shares[choice]))
            found = in_order(of_layer, choice, known, left_out)
            given[name] += found[0]
            own[name] += found[1]
            chosen[name].append(dict(zip(("layer", "strength", "own_weight"), choice, strict=True)))
    return {
        name: {
            "given": sum(given[name]) / len(asked),
            "given_two_standard_errors": 2 * standard_error(asked, given[name]),
            "own": sum(own[name]) / len(own[name]),
            "pairs": len(asked),
            "prompts": len(prompts),
            "chosen": chosen[name],
        }
        for name in QUALITIES
    }


def shares_in_order(
    of_layer: dict[int, models.Preferences], choice: Choice, prompts: set[str], folds: list[set[str]]
) -> tuple[float, float]:
    """Of these prompts, each fold asked of the others: the shares of the given pairs and of the policy's own."""
    found = [in_order(of_layer, choice, prompts - left_out, left_out) for left_out in folds]
    given, own = ([right for kind in kinds for right in kind] for kinds in zip(*found, strict=True))
    return sum(given) / len(given), sum(own) / len(own)


def in_order(
    of_layer: dict[int, models.Preferences], choice: Choice, known: set[str], left_out: set[str]
) -> tuple[list[bool], list[bool]]:
    """Which pairs of the prompts left out, given and of the policy's own, a head has in order that knows the others."""
    layer, strength, own_weight = choice
    of = of_layer[layer]
    head_H = of.head([row for row in of.rows if row["prompt"] in known], strength, own_weight)
    given, own = ([row for row in rows if row["prompt"] in left_out] for rows in (of.rows, of.own))
    return of.in_order(head_H, given), of.in_order(head_H, own)


def standard_error(prompts: list[str], right: list[bool]) -> float:
    """Of the share that is right, the pairs of one prompt taken together."""
    share = sum(right) / len(right)
    surplus = dict.fromkeys(prompts, 0.0)
    for prompt, each in zip(prompts, right, strict=True):
        surplus[prompt] += each - share
    return sum(each**2 for each in surplus.values()) ** 0.5 / len(right)


if __name__ == "__main__":
    main()
