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
    found = {name: nested(of_layer, quality) for name, quality in QUALITIES.items()}
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


def nested(of_layer: dict[int, models.Preferences], quality: Callable[[float, float], float]) -> dict[str, Any]:
    """The shares in order over all folds, what was chosen in each, and how far the share of the given pairs would vary
    with other prompts: twice the standard error, each prompt's pairs taken together.
    """
    one = of_layer[LAYERS[0]]
    prompts = {row["prompt"] for row in one.rows}
    given, own, chosen = [], [], []
    for left_out in tqdm(models.folds(prompts), desc="folds"):
        choice = best_choice(of_layer, prompts - left_out, quality)
        layer, strength, own_weight = choice
        of = of_layer[layer]
        head_H = of.head([row for row in of.rows if row["prompt"] not in left_out], strength, own_weight)
        asked = [row for row in of.rows if row["prompt"] in left_out]
        given += zip((row["prompt"] for row in asked), of.in_order(head_H, asked), strict=True)
        own += of.in_order(head_H, [row for row in of.own if row["prompt"] in left_out])
        chosen.append(dict(zip(("layer", "strength", "own_weight"), choice, strict=True)))
    share = sum(right for _, right in given) / len(given)
    surplus = dict.fromkeys(prompts, 0.0)
    for prompt, right in given:
        surplus[prompt] += right - share
    error = sum(each**2 for each in surplus.values()) ** 0.5 / len(given)
    return {
        "given": share,
        "given_two_standard_errors": 2 * error,
        "own": sum(own) / len(own),
        "pairs": len(given),
        "prompts": len(prompts),
        "chosen": chosen,
    }


def best_choice(
    of_layer: dict[int, models.Preferences], prompts: set[str], quality: Callable[[float, float], float]
) -> tuple[int, float, float]:
    """Layer, strength and weight that do best in four folds of these prompts."""

    def shares(choice: tuple[int, float, float]) -> tuple[float, float]:
        layer, strength, own_weight = choice
        of = of_layer[layer]
        given: list[bool] = []
        own: list[bool] = []
        for left_out in models.folds(prompts, models.FOLDS - 1):
            known = prompts - left_out
            head_H = of.head([row for row in of.rows if row["prompt"] in known], strength, own_weight)
            given += of.in_order(head_H, [row for row in of.rows if row["prompt"] in left_out])
            own += of.in_order(head_H, [row for row in of.own if row["prompt"] in left_out])
        return sum(given) / len(given), sum(own) / len(own)

    return max(itertools.product(LAYERS, STRENGTHS, OWN_WEIGHTS), key=lambda choice: quality(*shares(choice)))


if __name__ == "__main__":
    main()
