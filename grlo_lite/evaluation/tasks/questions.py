"""Where a task's questions come from: a file in the data directory, or the Hub; and the suites by name."""

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks.task import Question, Task


class Missing(Exception):
    """A task's questions cannot be had; the message says where they were sought and how to get them."""


def questions_of(task: Task, data_dir: Path | None, limit: int | None) -> list[Question]:
    """The task's questions in the source's order; where there is a limit, a random choice that depends on the task
    alone and of which a smaller limit's is a part.

    With a data directory nothing else is asked, so that no network is needed. Raises Missing where there is no such
    file or data set, and BadInput where a row is not as expected.
    """
    where, rows = ("the microcosm", []) if task.built_in else _rows(task, data_dir)
    try:
        found = task.questions(rows)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise BadInput(
            f"{where}: a row is not as {task.name} needs it ({said}); docs/evaluation.md shows one"
        ) from None
    limit = limit if limit is not None else task.limit
    if limit is None or limit >= len(found):
        return found
    chosen = sorted(random.Random(f"limit {task.name}").sample(range(len(found)), len(found))[:limit])
    return [found[i] for i in chosen]


def _rows(task: Task, data_dir: Path | None) -> tuple[str, list[dict[str, Any]]]:
    if data_dir is not None:
        for name in task.files:
            if (data_dir / name).is_file():
                return str(data_dir / name), rows_of(data_dir / name)
        raise Missing(f"{task.name}: no {' or '.join(task.files)} in {data_dir}")
    if task.hub is None:
        raise Missing(
            f"{task.name}: it is on no hub; put its {task.files[0]} into a folder and name that by --data-dir"
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    path, configuration, split = task.hub
    try:
        return path, [dict(row) for row in load_dataset(path, configuration, split=split)]
    except (OSError, ValueError, DatasetNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise Missing(
            f"{task.name}: the data set {path} cannot be loaded ({said}); log in with `hf auth login` if it is gated, "
            f"or put {task.files[0]} into a folder and name that by --data-dir"
        ) from None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, gzipped or not. Raises BadInput naming the line that is no JSON object."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_object(line, f"{path}, line {number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}; it must be JSON lines in UTF-8") from None
    return rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg}); every line must be one JSON object") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where} is a {type(row).__name__}; every line must be one JSON object")
    return row


def questions_sha256(asked: list[Question]) -> str:
    """SHA-256 of what is asked and what is right, order included: two evaluations compare where it is the same."""
    content = [(q.id, q.prompt, q.plain, q.reference) for q in asked]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
