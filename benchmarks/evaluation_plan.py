"""An evaluation's planned time beside what it takes: `python benchmarks/evaluation_plan.py RUN [words of evaluate]`.

Measures this machine first, as `python -m grlo_lite.plan --probe` does, into a file of its own; plans by the very
questions, as `evaluate --dry-run` does; and answers them in a copy of the run, where nothing is kept yet. The run's own
answers and metrics say how long answers are, as they do for its user. Loading and judging are in neither. Exits with 1
where they are more than a quarter apart.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.generation.request import Answer
from grlo_lite.wording import aligned

WITHIN = 0.25


class Timed:
    """Seconds and answered tokens of each task and arm, taken around what answers them."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.tokens: dict[tuple[str, str], int] = {}

    def around(self, answering: Callable[..., Any], named: Callable[..., tuple[str, str]]) -> Callable[..., Any]:
        def timed(*words: Any) -> Any:
            began = time.perf_counter()
            said = answering(*words)
            self.seconds[named(*words)] = time.perf_counter() - began
            rows = [answer for row in said if isinstance(row, list) for answer in row]
            self.tokens[named(*words)] = sum(answer.tokens for answer in rows if isinstance(answer, Answer))
            return said

        return timed


def planned(words: list[str]) -> tuple[list[Any], Any]:
    """The loads that `evaluate --dry-run` plans with, and where."""
    from grlo_lite import evaluate
    from grlo_lite.planning import evaluation

    caught: list[Any] = []
    shown = evaluation.text
    evaluation.text = lambda loads, setting: caught.extend((loads, setting)) or shown(loads, setting)
    try:
        if evaluate.main([*words, "--dry-run"]):
            raise SystemExit("the plan did not end in order")
    finally:
        evaluation.text = shown
    loads, setting = caught
    return loads, setting


def measured(words: list[str]) -> Timed:
    """What the same evaluation takes, by task and arm."""
    from grlo_lite import evaluate
    from grlo_lite.evaluation.answering import Asking
    from grlo_lite.evaluation.harness.arms import Arm
    from grlo_lite.evaluation.harness.loading import PREFIX

    timed = Timed()
    setattr(Asking, "_of_arm", timed.around(Asking._of_arm, lambda _, task, __, arm, ___: (task.name, arm)))  # noqa: B010
    Arm.responses = timed.around(Arm.responses, lambda arm, name, _: (PREFIX + name, arm.arm))
    if evaluate.main(words):
        raise SystemExit("the evaluation did not end in order")
    return timed


def copied(run: Path, folder: Path) -> Path:
    """The run without what it keeps of its answers."""
    keeps = shutil.ignore_patterns("answers.sqlite", "evaluation.json", "checkpoints")
    return Path(shutil.copytree(run, folder / "run", ignore=keeps))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--no-probe", action="store_true", help="go by what was measured on this machine before")
    arguments, more = parser.parse_known_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_probe:
            os.environ["GRLO_LITE_PROBES"] = str(Path(folder) / "probes.json")
            from grlo_lite import plan

            plan.main([str(arguments.run / "recipe.yaml"), "--probe"])
        words = [str(copied(arguments.run, Path(folder))), *more]
        loads, setting = planned(words)
        timed = measured(words)
    from grlo_lite.planning import evaluation

    rows = [("task", "arm", "answered tokens", "planned", "seconds", "planned", "apart")]
    for load in loads:
        took, plan_says = timed.seconds[load.task, load.arm], evaluation.seconds(load, setting)
        tokens = f"{timed.tokens[load.task, load.arm]:,}", f"{load.answer_tokens:,.0f}"
        rows.append((load.task, load.arm, *tokens, f"{took:.2f}", f"{plan_says:.2f}", f"{plan_says / took - 1:+.0%}"))
    took, plan_says = sum(timed.seconds.values()), evaluation.total_seconds(loads, setting)
    apart = plan_says / took - 1
    rows.append(("together", "", "", "", f"{took:.2f}", f"{plan_says:.2f}", f"{apart:+.0%}"))
    print("\n".join(["", *aligned(rows, left=(0, 1))]))
    return abs(apart) > WITHIN


if __name__ == "__main__":
    sys.exit(main())
