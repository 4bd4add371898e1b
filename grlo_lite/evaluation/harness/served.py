"""What lm-eval's tasks are given while they are loaded: questions from files, and the metrics that are programs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks.questions import Missing, rows_of
from grlo_lite.grading import sandbox

LOCAL_FORMATS = ("json", "csv", "parquet", "text")  # of data sets that a YAML reads from files of its own
PROGRAM_SECONDS = 10.0


@dataclass(frozen=True)
class Serving:
    """How tasks are loaded: where questions are read, with how many examples before them, and which code may run."""

    data_dir: Path | None = None
    num_fewshot: int | None = None  # None: as each task says
    code_allowed: bool = False  # programs that the model wrote, in the sandbox
    task_code_allowed: bool = False  # functions of the user's YAML, and metrics that a hub holds as programs


def examples_before(task: Any, wanted: int | None) -> int:
    """How many examples stand before a question: as the task says where nothing is wanted, or where it says none."""
    own = task.config.num_fewshot
    return own or 0 if own == 0 or wanted is None else wanted


@contextmanager
def served(serving: Serving, name: str) -> Iterator[None]:
    """Inside, lm-eval's tasks take their questions from `TASK.jsonl` (those that are asked) and `TASK.SPLIT.jsonl` in
    the data directory, where one is named, and programs only go where they may.

    Raises Missing, inside, where a file is not there, and where a metric is a program that must not run.
    """
    import evaluate
    from lm_eval.api.task import ConfigurableTask, Task

    def read(task: Any, dataset_kwargs: Any = None, *more: Any, **named: Any) -> None:
        if isinstance(task, ConfigurableTask):
            require_askable(task)
        if serving.data_dir is None or task.DATASET_PATH in LOCAL_FORMATS:
            original = configurable if isinstance(task, ConfigurableTask) else plain
            return original(task, dataset_kwargs, *more, **named)
        task.dataset = splits_of(task, serving, name)

    def metric(name: str, *_: Any, **__: Any) -> Any:
        if name == "code_eval":
            return SandboxedCode(serving.code_allowed)
        if serving.task_code_allowed:
            return load(name)
        raise Missing(f"its metric {name} is a program of Hugging Face's hub; --allow-task-code fetches and runs it")

    configurable, plain, load = ConfigurableTask.download, Task.download, evaluate.load
    replaced = {(ConfigurableTask, "download"): read, (Task, "download"): read, (evaluate, "load"): metric}
    for (owner, name_), function in replaced.items():
        setattr(owner, name_, function)
    try:
        yield
    finally:
        for (owner, name_), function in zip(replaced, (configurable, plain, load), strict=True):
            setattr(owner, name_, function)


def splits_of(task: Any, serving: Serving, named: str) -> Any:
    """The task's data set from its files: the split that is asked, the one that examples are drawn from, and any other
    that it names. A split without a file is empty where nothing is drawn from it. Raises Missing naming the file.
    """
    from datasets import Dataset, DatasetDict

    folder, name = serving.data_dir, (_name(task) or named).replace("/", "__")
    assert folder is not None
    asked, drawn, all_splits = _splits(task)
    found: dict[str, Any] = {}
    for split in all_splits:
        names = [f"{name}.{split}.jsonl"] + ([f"{name}.jsonl"] if split == asked else [])
        path = next((folder / one for one in names if (folder / one).is_file()), None)
        if path is not None:
            try:
                found[split] = Dataset.from_list(rows_of(path))
            except (ValueError, TypeError) as error:  # Arrow's errors among them
                said = " ".join(str(error).split())[:200]
                raise BadInput(f"{path}: its rows are not of one form ({said})") from None
        elif split == asked or (split == drawn and examples_before(task, serving.num_fewshot)):
            what = "" if split == asked else ", from which its examples are drawn (--num-fewshot 0 asks without)"
            raise Missing(f"no {' or '.join(reversed(names))} in {folder}{what}")
    return DatasetDict({split: found.get(split, found[asked].select([])) for split in all_splits})


def _name(task: Any) -> str | None:
    """Under which a task's files are; None for a class that has no name yet."""
    return getattr(getattr(task, "_config", None), "task", None)


def _splits(task: Any) -> tuple[str, str | None, list[str]]:
    """The split that is asked, the one that examples are drawn from, and all that a task names."""
    config = getattr(task, "_config", None)
    asked = None if config is None else config.test_split or config.validation_split  # a config is a dict, and empty
    if config is None or asked is None:  # a class that says nothing before it has its data
        return "validation", None, ["validation", "test", "train"]
    drawn = getattr(config.fewshot_config, "split", None) or config.training_split or config.validation_split or asked
    return (
        asked,
        drawn,
        list(dict.fromkeys(s for s in (asked, drawn, config.training_split, config.validation_split) if s)),
    )


GREEDY_ONLY = {"top_k", "top_p", "temperature", "min_p", "typical_p"}  # which change nothing where nothing is drawn
UNTOUCHED = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1, "length_penalty": 1.0}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def require_askable(task: Any) -> None:
    """Raises Missing where a task shows what the model cannot take, has a metric that cannot be had or paired, or asks
    for a way to generate that the kit's decoder has not.
    """
    if getattr(task, "MULTIMODAL", False):
        raise Missing("it shows images or plays sounds, which this model cannot take")
    own = task.config.process_results
    without = [name for name, metric in getattr(task, "_metric_fn_list", {}).items() if metric is None and not own]
    if without:
        raise Missing(
            f"its metric {without[0]} is a program of Hugging Face's hub; --allow-task-code fetches and runs it"
        )
    alone = [name for name, aggregate in task.aggregation().items() if aggregate is None]
    if alone:
        raise Missing(f"its metric {alone[0]} cannot be paired: lm-eval knows no such aggregation over documents")
    asked = dict(getattr(task.config, "generation_kwargs", None) or {})
    draws = asked.get("do_sample", float(asked.get("temperature") or 0) > 0)
    known = {"until", "do_sample", "temperature", "top_p", *LENGTHS, *UNTOUCHED, *(() if draws else GREEDY_ONLY)}
    strange = [name for name in asked if name not in known]
    strange += [name for name, usual in UNTOUCHED.items() if asked.get(name, usual) != usual]
    if strange:
        raise Missing(f"it generates with {strange[0]}={asked[strange[0]]}, which the kit's decoder has not")


class SandboxedCode:
    """Hugging Face's metric `code_eval`, its programs run in the kit's sandbox. Raises Missing where they may not."""

    def __init__(self, allowed: bool):
        if not allowed:
            raise Missing("it runs code that the model wrote; allow that, in the sandbox, with --allow-code-execution")
        if why := sandbox.unavailable():
            raise Missing(why)

    def compute(
        self, references: list[str], predictions: list[list[str]], k: list[int], **_: Any
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """The mean of pass@k over the problems for each k that there are programs enough for, and what each program
        came to.
        """
        from grlo_lite.evaluation.paired_statistics import pass_at

        told = {
            i: [(j, self._told(i, f"{program}\n{test}")) for j, program in enumerate(programs)]
            for i, (test, programs) in enumerate(zip(references, predictions, strict=True))
        }
        right = [(len(rows), sum(row["passed"] for _, row in rows)) for rows in told.values()]
        rates = {
            f"pass@{wanted}": sum(pass_at(wanted, n, c) for n, c in right) / len(right)
            for wanted in k
            if all(n >= wanted for n, _ in right)
        }
        return rates, told

    @staticmethod
    def _told(task: int, program: str) -> dict[str, Any]:
        done = sandbox.passes(program, PROGRAM_SECONDS)
        return {"task_id": task, "passed": done.passed, "result": done.why}
