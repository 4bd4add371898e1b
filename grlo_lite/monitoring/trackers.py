"""Weights & Biases, Trackio, MLflow and TensorBoard: the lines of metrics.jsonl, samples and guards. A row each."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback

from grlo_lite.machine import processes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.files import read_lines
from grlo_lite.rundir.layout import RunDir

PROJECT = "grlo_lite"
COLUMNS = ("step", "prompt", "completion", "reward", "score", "length", "truncated")
Row = dict[str, Any]


class Tracker(Protocol):
    """One tool's side of a run."""

    @abstractmethod
    def metrics(self, step: int, line: Row) -> None: ...

    @abstractmethod
    def samples(self, step: int, rows: list[Row]) -> None: ...

    @abstractmethod
    def alert(self, step: int, title: str, text: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's own `tensorboard/`. It has no alerts; a guard is a text."""

    def __init__(self, run: RunDir, recipe: Recipe, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step)
        self.writer.add_text("recipe", f"```\n{run.recipe.read_text(encoding='utf-8')}\n```", 0)

    def metrics(self, step: int, line: Row) -> None:
        for key, value in line.items():
            self.writer.add_scalar(key, value, step, new_style=True, double_precision=True)
        self.writer.flush()

    def samples(self, step: int, rows: list[Row]) -> None:
        cells = ["| " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |" for row in rows]
        head = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
        self.writer.add_text("samples", "\n".join(head + cells), step)

    def alert(self, step: int, title: str, text: str) -> None:
        self.writer.add_text(f"guard/{title}", text, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, its files in the run directory; offline where no key is known and no mode is set."""

    def __init__(self, run: RunDir, recipe: Recipe, first_step: int):
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.path.name, id=_identity(run), resume="allow",
            dir=str(run.path), config=recipe.model_dump(), mode=mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")

    def metrics(self, step: int, line: Row) -> None:
        self.run.log(line)

    def samples(self, step: int, rows: list[Row]) -> None:
        table = self.wandb.Table(columns=list(COLUMNS), data=[[row[column] for column in COLUMNS] for row in rows])
        self.run.log({"samples": table, "step": step})

    def alert(self, step: int, title: str, text: str) -> None:
        self.run.alert(title=title, text=f"step {step}: {text}")

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run in Trackio's local SQLite."""

    def __init__(self, run: RunDir, recipe: Recipe, first_step: int):
        import trackio

        self.trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run.path.name, config=recipe.model_dump(),
            resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def metrics(self, step: int, line: Row) -> None:
        self.trackio.log({key: value for key, value in line.items() if key != "step"}, step=step)

    def samples(self, step: int, rows: list[Row]) -> None:
        import pandas

        frame = pandas.DataFrame([{column: row[column] for column in COLUMNS} for row in rows])
        self.trackio.log({"samples": self.trackio.Table(dataframe=frame)}, step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        self.trackio.alert(title, f"step {step}: {text}")

    def close(self) -> None:
        self.trackio.finish()


class MLflow:
    """A run in the store that MLFLOW_TRACKING_URI names, by default the folder `mlflow` beside the run's own. It has no
    alerts; a guard is a tag.
    """

    def __init__(self, run: RunDir, recipe: Recipe, first_step: int):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        store = os.environ.get("MLFLOW_TRACKING_URI") or (run.path.absolute().parent / "mlflow").as_uri()
        self.client = MlflowClient(store)
        experiment = self.client.get_experiment_by_name(PROJECT)
        where = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        identity = _identity(run)
        known = self.client.search_runs([where], f"tags.grlo_lite_run = '{identity}'", max_results=1)
        made = known[0] if known else self.client.create_run(
            where, run_name=run.path.name, tags={"grlo_lite_run": identity}
        )  # fmt: skip
        self.id = made.info.run_id
        if not known:
            self.client.log_dict(self.id, recipe.model_dump(mode="json"), "recipe.json")

    def metrics(self, step: int, line: Row) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(key, float(value), now, step) for key, value in line.items()])

    def samples(self, step: int, rows: list[Row]) -> None:
        table = {column: [row[column] for row in rows] for column in COLUMNS}
        self.client.log_table(self.id, table, "samples.json")

    def alert(self, step: int, title: str, text: str) -> None:
        self.client.set_tag(self.id, f"guard.{title}", f"step {step}: {text}"[:4000])

    def close(self) -> None:
        self.client.set_terminated(self.id)


# A tracker by the name that a recipe gives it: the package that it needs, and what makes it
TRACKERS: dict[str, tuple[str, Callable[[RunDir, Recipe, int], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
    "trackio": ("trackio", Trackio),
    "mlflow": ("mlflow", MLflow),
}


class Followed(TrainerCallback):
    """Hands what a step added to the run's files on to the recipe's trackers. It comes after what writes the files.

    A tracker that is not installed, or that fails, is told once and left out; the run goes on without it.
    """

    def __init__(self, run: RunDir, recipe: Recipe):
        self.run, self.recipe = run, recipe
        self.trackers: dict[str, Tracker] = {}
        self.begun = False
        self.done = {path: len(read_lines(path)) for path in run.journals}

    def on_train_begin(self, args, state, control, **_):
        if self.begun or not processes.is_main():
            return
        self.begun = True
        first_step = (read_lines(self.run.metrics) or [{"step": 0}])[-1]["step"] + 1
        for name in self.recipe.logging.report_to:
            if find_spec(TRACKERS[name][0]) is None:
                tqdm.write(f"logging.report_to: {name} is not installed; pip install 'grlo-lite[trackers]'")
            else:
                self._guarded(name, partial(self._begin, name, first_step))

    def _begin(self, name: str, first_step: int) -> None:
        self.trackers[name] = TRACKERS[name][1](self.run, self.recipe, first_step)

    def on_log(self, args, state, control, **_):
        if not self.trackers:
            return
        lines, samples, guards = (self._new(path) for path in self.run.journals)
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, partial(_hand_on, tracker, lines, samples, guards))

    def close(self) -> None:
        """Ends what was begun with each tracker."""
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, tracker.close)

    def _new(self, path: Path) -> list[Row]:
        rows = read_lines(path)
        new, self.done[path] = rows[self.done[path] :], len(rows)
        return new

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 (a tracker may raise anything, and a run is worth more than it)
            self.trackers.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            tqdm.write(f"logging.report_to: {name} failed and is left out from here on ({said})")


def _hand_on(tracker: Tracker, lines: list[Row], samples: list[Row], guards: list[Row]) -> None:
    for line in lines:
        tracker.metrics(line["step"], {key: value for key, value in line.items() if value is not None})
    if samples:
        tracker.samples(samples[-1]["step"], samples)
    for row in guards:
        tracker.alert(row["step"], row["guard"], row["message"])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _identity(run: RunDir) -> str:
    """The same for a resumed run."""
    return hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:16]
