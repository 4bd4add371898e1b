"""lm-eval's tasks by name: found, loaded, and refused by name where one cannot be asked as it stands."""

import difflib
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.harness.served import SandboxedCode, Serving, examples_before, require_askable, served
from grlo_lite.evaluation.tasks.questions import Missing
from grlo_lite.wording import cut, shortened

PREFIX = "lm-eval:"  # names a task of lm-eval where the kit has one of that name, and in every table


@dataclass(frozen=True)
class Loaded:
    """Tasks by name, the groups that were named with the tasks in them, and what was left out and why."""

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise BadInput("lm-eval is not installed here; pip install 'grlo-lite[eval]'")


@cache
def manager(include_path: Path | None, bundled: bool = True) -> Any:
    """lm-eval's index of tasks, the user's own before the bundled ones. Some seven seconds with these."""
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager(include_path=include_path and str(include_path), include_defaults=bundled)


def manager_of(names: Iterable[str], include_path: Path | None) -> Any:
    """The index that holds these names: the user's own alone where that does, which is read at once."""
    require_lm_eval()
    if include_path is not None:
        own = manager(include_path, bundled=False)
        if all(name in own.all_tasks for name in names):
            return own
    return manager(include_path)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, lm-eval and `datasets` neither warn nor draw bars: what matters of it is said by the kit."""
    import datasets
    from lm_eval.api import task as tasks

    before, bar = logging.root.manager.disable, tasks.tqdm
    logging.disable(logging.ERROR)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    setattr(tasks, "tqdm", lambda rows, **_: rows)  # noqa: B010 - pyright knows no assignment to a module
    try:
        yield
    finally:
        setattr(tasks, "tqdm", bar)  # noqa: B010
        logging.disable(before)
        if not bars:
            datasets.enable_progress_bars()


def require_known(names: Iterable[str], include_path: Path | None, own: Iterable[str]) -> None:
    """Raises BadInput for a name that is no task, group or tag, with the nearest one that is."""
    names = list(names)
    index = manager_of(names, include_path)
    for name in names:
        if name not in index.task_index:
            near = difflib.get_close_matches(name, [*own, *index.all_tasks], 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else "; `lm-eval ls tasks` lists what it knows"
            raise BadInput(f"--tasks {cut(name)} is no task, group or tag of lm-eval{hint}")


def load(names: Iterable[str], include_path: Path | None, serving: Serving, seed: int) -> Loaded:
    """The tasks of these names, groups and tags, each loaded once, with the examples before a question that are wanted.

    Raises BadInput for --num-fewshot that a task cannot take, and for functions in the user's own YAML that were not
    allowed to run.
    """
    names = list(names)
    index = manager_of(names, include_path)
    found = Loaded()
    for name in _untagged(names, index):
        try:
            item = one(name, index, include_path, serving, seed)
        except Missing as absent:
            found.missing.append(f"{PREFIX}{name}: {absent}")
            continue
        if hasattr(item, "get_all_tasks"):
            found.groups.update({group.name: group for group in (item, *item.get_all_groups())})
            found.tasks.update({task.task_name: task for task in item.get_all_tasks()})
        else:
            found.tasks.setdefault(name, item)
    return found


def _untagged(names: Iterable[str], index: Any) -> list[str]:
    """The names with each tag replaced by its tasks, groups first, whose tasks are then theirs."""
    from lm_eval.tasks._index import Kind

    whole: list[str] = []
    for name in names:
        entry = index.task_index[name]
        whole += sorted(entry.tags & index.task_index.keys()) if entry.kind is Kind.TAG else [name]
    distinct = list(dict.fromkeys(whole))
    return sorted(distinct, key=lambda name: index.task_index[name].kind is not Kind.GROUP)


def one(name: str, index: Any, include_path: Path | None, serving: Serving, seed: int) -> Any:
    """The task or group of a name. Raises Missing with a reason in one line where it cannot be had."""
    _require_no_functions(index.task_index[name], index, include_path, serving)
    random.seed(seed)  # tasks that shuffle their options do it by the global generator
    with quiet(), served(serving, name):
        item = _built(name, index)
    with quiet():
        for task in item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]:
            settle(task, serving, seed)
    return item


def _built(name: str, index: Any) -> Any:
    """The task or group, loaded by lm-eval; whatever its code or its data raise there ends as Missing."""
    try:
        return index._load_spec(name)
    except (Missing, BadInput):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a task is code of others, and raises what it likes
        raise Missing(_said(error, index.task_index[name])) from None


def _said(error: BaseException, entry: Any) -> str:
    """Why a task did not load, in a line: its data set, its package, or what it raised."""
    from datasets.exceptions import DatasetNotFoundError

    said = " ".join(str(error).split())[:160]
    if isinstance(error, ImportError):
        return f"it needs a package that is not here ({said})"
    if isinstance(error, (ConnectionError, DatasetNotFoundError, FileNotFoundError, TimeoutError)):
        data = (entry.cfg or {}).get("dataset_path") or "it needs"
        return (
            f"the data set {data} cannot be loaded ({said}); put {entry.name}.jsonl, and {entry.name}.SPLIT.jsonl for "
            "its examples, into a folder and name that by --data-dir"
        )
    return f"it does not load ({type(error).__name__}: {said})"


def _require_no_functions(entry: Any, index: Any, include_path: Path | None, serving: Serving) -> None:
    """Raises BadInput where a YAML of the user's own calls Python, which runs unconfined, without leave."""
    if include_path is None or serving.task_code_allowed or entry.yaml_path is None:
        return
    if not any(Path(entry.yaml_path).is_relative_to(root) for root in (include_path, include_path.resolve())):
        return
    for path in _with_includes(Path(entry.yaml_path)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "!function" in line.split("#")[0]:
                raise BadInput(
                    f"{path}, line {number}: {shortened(line.strip())} runs Python of that folder, unconfined; "
                    "look at it and allow it with --allow-task-code"
                )
    inside = (entry.cfg or {}).get("task")
    for child in inside if isinstance(inside, list) else []:
        member = index.task_index.get(child if isinstance(child, str) else child.get("task", child.get("group")))
        if member is not None:
            _require_no_functions(member, index, include_path, serving)


def _with_includes(path: Path) -> list[Path]:
    """A YAML file and those that it includes."""
    from lm_eval.tasks._yaml_loader import load_yaml

    includes = load_yaml(path, resolve_func=False, recursive=False).get("include") or []
    inside = [path.parent / one for one in (includes if isinstance(includes, list) else [includes])]
    return [path, *(file for one in inside if one.is_file() for file in _with_includes(one))]


def settle(task: Any, serving: Serving, seed: int) -> None:
    """Fixes a loaded task's questions, examples and seeds, so that both arms are asked the same.

    Raises Missing where the kit cannot ask it, and BadInput for --num-fewshot that it cannot take.
    """
    config = task.config
    require_askable(task)
    if getattr(task, "UNSAFE_CODE", False) and not _runs_in_the_sandbox(task):
        raise Missing("it runs code that the model wrote by its own means, which do not go into the sandbox")
    if serving.num_fewshot is not None:
        _require_examples(task, serving.num_fewshot)
    config.num_fewshot = examples_before(task, serving.num_fewshot)
    documents = task.eval_docs
    if not len(documents):
        raise Missing("it has no questions")
    # Each access would process them anew, and shuffle where the task shuffles
    setattr(task, "test_docs" if task.has_test_docs() else "validation_docs", lambda: documents)
    task.set_fewshot_seed(seed)


def _runs_in_the_sandbox(task: Any) -> bool:
    functions = [*getattr(task, "_metric_fn_list", {}).values(), task.config.process_results]
    spaces = [getattr(function, "__globals__", {}) for function in functions if function]
    return any(isinstance(value, SandboxedCode) for space in spaces for value in space.values())


def _require_examples(task: Any, wanted: int) -> None:
    """Raises BadInput where so many examples cannot stand before a task's questions."""
    name, own = f"{PREFIX}{task.task_name}", task.config.num_fewshot
    if own == 0 and wanted:
        raise BadInput(f"--num-fewshot {wanted}: {name} fixes it to 0 in its YAML; ask that task by itself without it")
    if wanted and task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise BadInput(
            f"--num-fewshot {wanted}: {name} reads whole texts, before which no examples stand; leave it out"
        )
    drawn = task.fewshot_cfg
    if wanted and not (drawn.split or drawn.samples or task.has_training_docs() or task.has_validation_docs()):
        raise BadInput(
            f"--num-fewshot {wanted}: {name} has no examples apart from its questions; lm-eval would show one "
            "with its own answer. Leave it out"
        )
    there = len(getattr(getattr(task, "sampler", None), "df", None) or [])
    same_split = drawn.split == task.config.test_split
    most = there - 1 if same_split and there else there
    if wanted > most:
        raise BadInput(f"--num-fewshot {wanted}: {name} has {most} examples to draw from; ask for at most so many")
