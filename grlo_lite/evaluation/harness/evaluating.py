"""lm-eval's tasks, from their requests to rows of evaluation.json."""

from dataclasses import dataclass
from typing import Any

from grlo_lite.evaluation.answering import Asking
from grlo_lite.evaluation.harness import outcomes
from grlo_lite.evaluation.harness.arms import Arm
from grlo_lite.evaluation.harness.loading import PREFIX, Loaded
from grlo_lite.evaluation.harness.outcomes import TaskOutcome
from grlo_lite.evaluation.harness.requests import Built, Encoding, Wanted, built
from grlo_lite.evaluation.harness.scoring import scored
from grlo_lite.evaluation.results import ARMS, PLAIN, Rows, steps
from grlo_lite.evaluation.tasks.questions import Missing
from grlo_lite.models import trained_adapter


@dataclass
class Prepared:
    """lm-eval's tasks with the requests of each way of asking: in the chat template, and without."""

    loaded: Loaded
    templated: dict[str, Built]
    plain: dict[str, Built]

    def of(self, arm: str) -> dict[str, Built]:
        return self.plain if arm == PLAIN else self.templated

    def arms(self, name: str, arms: tuple[str, ...]) -> list[str]:
        """Those of the arms that a task is asked by: without a template only where there is one."""
        return [arm for arm in arms if name in self.of(arm)]

    def answers(self, arms: tuple[str, ...]) -> int:
        """How many responses all arms are asked for."""
        return sum(
            sum(request.repeats if request.sampling else 1 for request in one.requests)
            for arm in arms
            for one in self.of(arm).values()
        )


def prepare(loaded: Loaded, tokenizer: Any, max_length: int, wanted: Wanted) -> Prepared:
    """The requests of all tasks, for each way of asking that means something: a text that is read as a whole has no
    template. Raises BadInput where a task asks for what the kit cannot do.
    """
    found = Prepared(loaded, {}, {})
    for name, task in loaded.tasks.items():
        whole = task.OUTPUT_TYPE == "loglikelihood_rolling"
        ways = [(found.templated, wanted.templated and not whole)]
        ways += [(found.plain, False)] if wanted.templated and not whole else []
        for way, in_template in ways:
            encoding = Encoding(tokenizer, max_length, templated=in_template)
            way[name] = built(task, encoding, wanted)
    return found


def answered(prepared: Prepared, asking: Asking, arms: tuple[str, ...]) -> tuple[list[TaskOutcome], list[str]]:
    """Each task's outcome with all arms, and those that could not be scored and why."""
    from tqdm import tqdm

    found, missing = {name: TaskOutcome(task) for name, task in prepared.loaded.tasks.items()}, []
    with tqdm(total=prepared.answers(arms), unit="answer", desc="lm-eval") as bar:
        for name in prepared.loaded.tasks:
            for arm in prepared.arms(name, arms):
                bar.set_postfix_str(f"{name}, {arm}")
                built_ = prepared.of(arm)[name]
                with trained_adapter.in_effect(asking.policy.model, arm):
                    responses = Arm(asking, arm, bar).responses(name, built_.requests)
                try:
                    found[name].arms[arm] = scored(built_, responses)
                except Missing as unscored:
                    missing.append(f"{PREFIX}{name}: {unscored}")
                    del found[name]
                    break
    return list(found.values()), missing


def rows(prepared: Prepared, found: list[TaskOutcome], stages: list[str]) -> tuple[Rows, list[str]]:
    """The rows of evaluation.json of both arms, and what its table has to say of them."""
    tasks = []
    for outcome in found:
        row = outcomes.task_row(outcome, prepared.templated[outcome.task.task_name], PLAIN, stages)
        compared = [
            {"arm": arm, "from": before, **outcomes.compared(outcome, outcome.metrics()[0], before, arm)[1]}
            for arm, before in steps(outcome.arms)
        ]
        tasks.append(row | ({"steps": compared} if compared else {}))
    arms = tuple(dict.fromkeys(arm for outcome in found for arm in outcome.arms))
    return Rows(tasks, outcomes.group_rows(prepared.loaded.groups, found), arms or ARMS), outcomes.notes(tasks)
