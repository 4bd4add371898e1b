"""The run directory: its layout, atomic writes, and the checkpoint to go on from. README.md describes the files."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from grlo_lite.recipe import BadInput

RUNS = Path("runs")


class RunDir:
    """Paths of one run, and how they are written. Files appear whole or not at all; the JSONL files grow by whole
    lines.
    """

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.contamination = path / "contamination.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.guards = path / "guards.jsonl"
        self.best_adapter = path / "best_adapter.safetensors"
        self.checkpoints = path / "checkpoints"
        self.partial = self.checkpoints / ".partial"  # where a checkpoint grows before it gets its name
        self.adapter = path / "adapter"
        self.evaluation = path / "evaluation.json"
        self.answers = path / "answers.jsonl"  # every answer of the newest evaluation, and why it was judged so
        self.answer_store = path / "answers.sqlite"  # every answer of all of them, so that none is asked for twice
        self.summary = path / "summary.json"

    def recipe_name(self) -> str:
        """What the run's recipe was called; the directory's name where it stopped before that was written."""
        if self.environment.is_file():
            return json.loads(self.environment.read_text(encoding="utf-8"))["recipe"]
        return self.path.name

    @property
    def finished(self) -> bool:
        return self.summary.is_file()

    def complete_checkpoints(self) -> list[Path]:
        """The checkpoints that were written to their end, oldest first."""
        found = [p for p in self.checkpoints.glob("step-*") if p.name[5:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[5:]))

    def adopt_checkpoint(self, written: Path, step: int, kept: int) -> None:
        """Makes a folder that was written elsewhere under `checkpoints/` the checkpoint of `step`, and drops all but
        the newest `kept`.
        """
        final = self.checkpoints / f"step-{step}"
        for file in written.rglob("*"):
            if file.is_file():
                _flush(file)
        if final.exists():
            shutil.rmtree(final)
        written.rename(final)
        _flush(self.checkpoints)
        for old in self.complete_checkpoints()[:-kept]:
            shutil.rmtree(old)
        shutil.rmtree(self.partial, ignore_errors=True)

    def cut_lines_after(self, step: int) -> None:
        """Drops the lines of metrics and samples that a run wrote after the checkpoint it goes on from."""
        for path in (self.metrics, self.samples, self.guards):
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
                write_atomically(path, "".join(kept))


def create(path: Path) -> RunDir:
    """A new, empty run directory. Raises BadInput where it exists already or cannot be written."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        run = RunDir(path)
        if run.finished:
            raise BadInput(f"the run {path} is finished already; name another --run-dir") from None
        raise BadInput(f"{path} exists already; go on with it by --resume, or name another --run-dir") from None
    except OSError as error:
        raise BadInput(
            f"the run directory {path} cannot be made: {error.strerror}; choose another by --run-dir"
        ) from None
    run = RunDir(path)
    run.checkpoints.mkdir()
    return run


def discard_if_unused(run: RunDir) -> None:
    """Removes a run directory in which no step was made."""
    if not run.metrics.exists():
        shutil.rmtree(run.path)


def to_resume(path: Path | None) -> RunDir:
    """The run to go on with: `path`, or the newest unfinished one in `runs/`. Raises BadInput where there is none."""
    if path is None:
        unfinished = [p.parent for p in RUNS.glob("*/recipe.yaml") if not RunDir(p.parent).finished]
        if not unfinished:
            raise BadInput(f"there is no unfinished run under {RUNS}/; name one by --run-dir")
        path = max(unfinished, key=lambda p: p.stat().st_mtime)
    run = RunDir(path)
    if not run.recipe.is_file():
        raise BadInput(f"{path} is no run directory: it has no recipe.yaml")
    if run.finished:
        raise BadInput(f"the run {path} is finished; there is nothing to resume")
    return run


def default_path(recipe_name: str) -> Path:
    """`runs/<recipe>-<date>-<time>`, with a number behind it where that exists already."""
    path = RUNS / f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is whole or absent. Raises ValueError on NaN or infinity, which JSON does not
    have.
    """
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file through a temporary neighbour, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Appends rows as JSON lines in one write. Raises ValueError on NaN or infinity."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
