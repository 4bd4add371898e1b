"""The run directory: its layout, atomic writes, and the checkpoint to go on from. README.md describes the files."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from grlo_lite.errors import BadInput, DiskFull

RUNS = Path("runs")
MANIFEST = "manifest.json"


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
        self.best_adapter = path / "best_adapter.safetensors"  # liked best by the held-out judge, for keep_best
        self.checkpoints = path / "checkpoints"
        self.partial = self.checkpoints / ".partial"  # where a checkpoint grows before it gets its name
        self.adapter = path / "adapter"
        self.evaluation = path / "evaluation.json"
        self.answers = path / "answers.jsonl"  # every answer of the newest evaluation, and why it was judged so
        self.answer_store = path / "answers.sqlite"  # every answer of all of them, so that none is asked for twice
        self.summary = path / "summary.json"

    @property
    def journals(self) -> tuple[Path, ...]:
        """The files that grow with every step, and that a resumed run goes on from at the checkpoint's length."""
        return self.metrics, self.samples, self.guards

    @property
    def finished(self) -> bool:
        return self.summary.is_file()

    def recipe_name(self) -> str:
        """What the run's recipe was called. Raises BadInput where environment.json cannot be read."""
        return read_json(self.environment)["recipe"]

    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints that were written to their end, oldest first, whatever became of them since."""
        found = [p for p in self.checkpoints.glob("step-*") if p.name[5:].isdigit()]
        return sorted(found, key=step_of)

    def adopt_checkpoint(self, written: Path, step: int, kept: int, score: float | None, processes: int = 1) -> None:
        """Makes a folder that was written elsewhere under `checkpoints/` the checkpoint of `step`.

        Its manifest holds every file's size and hash, the journals' lengths, and the `score` by which one checkpoint
        is the best. All is on the disk before the folder gets its name, and only then are older ones dropped: all but
        the newest `kept` and the best. Raises OSError where the disk does not take it; the older ones are then as
        they were.
        """
        if self.best_adapter.is_file():
            shutil.copyfile(self.best_adapter, written / self.best_adapter.name)
        files = [file for file in sorted(written.rglob("*")) if file.is_file()]
        lengths = self.journal_lengths()
        manifest = {
            "step": step,
            "processes": processes,
            "score": score,
            "files": {str(f.relative_to(written)): [f.stat().st_size, file_sha256(f)] for f in files},
            "journals": lengths,
        }
        write_json(written / MANIFEST, {**manifest, "manifest_sha256": _content_sha256(manifest)})
        with ThreadPoolExecutor(8) as pool:  # together, for a disk takes eight about as fast as one
            list(pool.map(flush, [*files, *(self.path / name for name in lengths)]))
        final = self.checkpoints / f"step-{step}"
        if final.exists():
            shutil.rmtree(final)
        written.rename(final)
        flush(self.checkpoints)
        for old in self._superseded(kept):
            shutil.rmtree(old)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _superseded(self, kept: int) -> list[Path]:
        folders = self.checkpoint_folders()
        manifests = {folder: _manifest(folder) for folder in folders}
        scores = {f: m["score"] for f, m in manifests.items() if not isinstance(m, str) and m["score"] is not None}
        best = max(scores, key=lambda folder: scores[folder], default=None)
        return [folder for folder in folders[:-kept] if folder != best]

    def checkpoint_to_resume(self, processes: int = 1) -> Path | None:
        """The newest checkpoint that is as it was written; None where the run was cut off before its first one.

        A damaged one is named, passed over and put aside as `damaged-step-N`. The journals are cut to the length they
        had, and the best adapter is the one it knew. Raises BadInput where every checkpoint is damaged, where a
        journal lost what the checkpoint knew of, or where another number of processes made it.
        """
        damaged: dict[Path, str] = {}
        for folder in reversed(self.checkpoint_folders()):
            reason = damage(folder)
            if reason is None:
                break
            damaged[folder] = reason
        else:
            if damaged:
                told = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
                raise BadInput(f"no checkpoint of {self.path} is whole ({told}); restore one, or begin a new run")
            self.cut_journals({})
            return None
        manifest = read_json(folder / MANIFEST)
        if manifest["processes"] != processes:
            raise BadInput(
                f"{folder} was made by {manifest['processes']} processes and this run has {processes}; resume it with "
                f"as many (accelerate launch --num_processes {manifest['processes']} …)"
            )
        self.cut_journals(manifest["journals"])
        for bad, reason in damaged.items():
            print(f"the checkpoint {bad.name} is damaged ({reason}) and is passed over for {folder.name}", flush=True)
            aside = bad.with_name(f"damaged-{bad.name}")
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)
        if (folder / self.best_adapter.name).is_file():
            shutil.copyfile(folder / self.best_adapter.name, self.best_adapter)
        return folder

    def journal_lengths(self) -> dict[str, int]:
        """The journals that there are, by name, and their lengths in bytes."""
        return {path.name: path.stat().st_size for path in self.journals if path.is_file()}

    def cut_journals(self, lengths: dict[str, int]) -> None:
        """Cuts each journal to its length in bytes; one that is not named was not there yet. Raises BadInput where
        one is shorter.
        """
        for path in self.journals:
            size, length = path.stat().st_size if path.is_file() else 0, lengths.get(path.name, 0)
            if size < length:
                raise BadInput(
                    f"{path} has {size:,} bytes and the newest whole checkpoint knew {length:,}; restore the file"
                )
        for path in self.journals:
            if path.name in lengths:
                os.truncate(path, lengths[path.name])
            else:
                path.unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made, from its folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None where it is byte for byte as it was written."""
    manifest = _manifest(checkpoint)
    if isinstance(manifest, str):
        return manifest
    for name, (size, sha256) in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
        if file_sha256(file) != sha256:
            return f"{name} is not what was written"
    return None


def _manifest(checkpoint: Path) -> dict[str, Any] | str:
    """A checkpoint's manifest, or what is wrong with it."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        claimed = manifest.pop("manifest_sha256")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST} is no manifest"
    return manifest if claimed == _content_sha256(manifest) else f"{MANIFEST} was changed"


def create(path: Path, recipe_name: str, recipe: str) -> RunDir:
    """A new run directory that holds the recipe, and so can be resumed from its first moment on.

    Raises BadInput where it exists already or cannot be written.
    """
    run = RunDir(path)
    if run.finished:
        raise BadInput(f"the run {path} is finished already; name another --run-dir")
    if path.exists():
        raise BadInput(f"{path} exists already; go on with it by --resume, or name another --run-dir")
    growing = RunDir(path.with_name(f".{path.name}.partial"))
    try:
        shutil.rmtree(growing.path, ignore_errors=True)
        growing.checkpoints.mkdir(parents=True)
        write_atomically(growing.recipe, recipe)
        write_json(growing.environment, {"recipe": recipe_name})
        growing.path.rename(path)
    except OSError as error:
        raise BadInput(
            f"the run directory {path} cannot be made: {error.strerror}; choose another by --run-dir"
        ) from None
    return run


def discard_if_unused(run: RunDir) -> None:
    """Removes a run directory in which no step was made."""
    if not run.metrics.exists() and not run.checkpoint_folders():
        shutil.rmtree(run.path)


def require_space(run: RunDir, needed: int) -> None:
    """Raises BadInput where the run's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise BadInput(
            f"the run will write about {_in_mib(needed)} under {run.path} and {_in_mib(free)} are free; make room, "
            "choose another disk by --run-dir, or keep fewer checkpoints (budget.checkpoints_kept=1)"
        )


@contextmanager
def full_disk_told(run: RunDir, next_checkpoint: int) -> Iterator[None]:
    """Inside, an error that comes of a full disk leaves as DiskFull; `next_checkpoint` bytes are what the run would
    write next.

    Some libraries say only that writing failed, so an error counts where the disk has less left than that.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(run.path).free
        named = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not named and free >= next_checkpoint:
            raise
        shutil.rmtree(run.partial, ignore_errors=True)
        raise DiskFull(_full_disk_message(run, f"{_in_mib(free)} are free")) from error


def require_space_for_checkpoint(run: RunDir, step: int, needed: int) -> None:
    """Raises DiskFull before anything is written where a checkpoint of `needed` bytes has no room."""
    free = shutil.disk_usage(run.path).free
    if free < needed:
        what = f"the checkpoint of step {step} takes {_in_mib(needed)} and {_in_mib(free)} are free"
        raise DiskFull(_full_disk_message(run, what))


def _full_disk_message(run: RunDir, what: str) -> str:
    whole = run.checkpoint_folders()
    kept = f"{whole[-1].name} is kept" if whole else "no checkpoint was made yet"
    return (
        f"the disk under {run.path} is full: {what}; {kept}; make room and go on with: "
        f"python -m grlo_lite.train --run-dir {run.path} --resume"
    )


def _in_mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


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
    if not os.access(path, os.W_OK):
        raise BadInput(f"the run directory {path} cannot be written; copy it to where it can, and resume it there")
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run directory. Raises BadInput where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; restore it from a copy of the run") from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); restore it from a copy of the run") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} is damaged (no JSON object); restore it from a copy of the run")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises BadInput, naming the line, where one is no JSON."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise BadInput(f"{path}, line {number} is no JSON; restore the file from a copy of the run") from None
    return rows


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
