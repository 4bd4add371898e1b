"""The run directory: its layout, atomic writes, and the checkpoint to go on from. README.md describes the files."""

import os.path
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.checkpoints import MANIFEST, damage, manifest_of, step_of
from grlo_lite.rundir.files import content_sha256, file_sha256, flush, read_json, write_atomically, write_json
from grlo_lite.wording import cut

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
        self.best_adapter = path / "best_adapter.safetensors"  # liked best by the held-out judge, for keep_best
        self.checkpoints = path / "checkpoints"
        self.partial = self.checkpoints / ".partial"  # where a checkpoint grows before it gets its name
        self.adapter = path / "adapter"
        self.critic = path / "critic"  # where algorithm.critic.save asks for it
        self.evaluation = path / "evaluation.json"
        self.answers = path / "answers.jsonl"  # every answer of the newest evaluation, and why it was judged so
        self.answer_store = path / "answers.sqlite"  # every answer of all of them, so that none is asked for twice
        self.summary = path / "summary.json"
        self.report = path / "report.html"

    @property
    def journals(self) -> tuple[Path, ...]:
        """The files that grow with every step, and that a resumed run goes on from at the checkpoint's length."""
        return self.metrics, self.samples, self.guards

    @property
    def finished(self) -> bool:
        return os.path.isfile(self.summary)  # Path's own raises where a name is longer than the file system takes

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
        write_json(written / MANIFEST, {**manifest, "manifest_sha256": content_sha256(manifest)})
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
        manifests = {folder: manifest_of(folder) for folder in folders}
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


def create(path: Path, recipe_name: str, recipe: str) -> RunDir:
    """A new run directory that holds the recipe, and so can be resumed from its first moment on.

    Raises BadInput where it exists already or cannot be written.
    """
    run = RunDir(path)
    if run.finished:
        raise BadInput(f"the run {path} is finished already; name another --run-dir")
    if os.path.exists(path):
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
            f"the run directory {cut(str(path))} cannot be made: {error.strerror}; choose another by --run-dir"
        ) from None
    return run


def begun(path: Path | None, recipe_name: str, recipe: Recipe, contamination: dict[str, Any]) -> RunDir:
    """A new run directory at `path`, by default under `runs/`, which the main process makes and the others are told."""
    path = path or default_path(recipe_name)
    if processes.is_main():
        write_json(create(path, recipe_name, recipes.dumped(recipe)).contamination, contamination)
    return RunDir(processes.agreed(path))


def discard_if_unused(run: RunDir) -> None:
    """Removes a run directory in which no step was made."""
    if not run.metrics.exists() and not run.checkpoint_folders():
        shutil.rmtree(run.path)


def to_resume(path: Path | None) -> RunDir:
    """The run to go on with: `path`, or the newest unfinished one in `runs/`. Raises BadInput where there is none."""
    if path is None:
        unfinished = [p.parent for p in RUNS.glob("*/recipe.yaml") if not RunDir(p.parent).finished]
        if not unfinished:
            raise BadInput(f"there is no unfinished run under {RUNS}/; name one by --run-dir")
        path = max(unfinished, key=lambda p: p.stat().st_mtime)
    run = RunDir(path)
    if not os.path.isfile(run.recipe):
        raise BadInput(f"{cut(str(path))} is no run directory: it has no recipe.yaml")
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
