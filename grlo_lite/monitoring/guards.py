"""What watches a run and speaks when something goes wrong: a row a guard."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback

from grlo_lite.machine import processes
from grlo_lite.recipe.schema import Guards, Watched
from grlo_lite.rundir.files import append_lines, read_lines
from grlo_lite.rundir.layout import RunDir

# Each guard's metric with its side and meaning, as the recipe's section has them
WATCHED = {
    name: said for name, field in Guards.model_fields.items() for said in field.metadata if isinstance(said, Watched)
}


@dataclass(eq=False)
class Watch(TrainerCallback):
    """Holds each step's metrics against the recipe's limits. A guard speaks once, and `because` says which one
    stopped the run. The first step that teaches nothing is told at once, whatever the limits.

    What it remembers is what metrics.jsonl and guards.jsonl hold, so a resumed run's guards know what the first part
    saw.
    """

    guards: Guards
    run: RunDir
    latest: Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]  # the newest step's metrics, samples that show it
    why_no_signal: Callable[[], str | None] = lambda: None  # what is wrong with its rewards, if they teach nothing
    because: str | None = None

    def __post_init__(self):
        self.lines = read_lines(self.run.metrics)
        self.spoken = {row["guard"] for row in read_lines(self.run.guards)}
        self.writes = processes.is_main()

    def on_log(self, args, state, control, model=None, **_):
        line, samples = self.latest()
        if not line or (self.lines and line["step"] <= self.lines[-1]["step"]):
            return
        self.lines.append(line)
        if "no_signal" not in self.spoken and (why := self.why_no_signal()):
            message = f"no answer earned more than another to the same prompt, so this step teaches nothing: {why}"
            self._speak("no_signal", message, "warn", samples, control)
        for name, (too_high, meaning) in WATCHED.items():
            guard, value = getattr(self.guards, name), window_mean(self.lines, name, self.guards.window)
            if guard.limit is None or value is None or name in self.spoken:
                continue
            if value > guard.limit if too_high else value < guard.limit:
                message = (
                    f"{name} has been {value:.2f} over {self.guards.window} steps (limit {guard.limit:g}): {meaning}"
                )
                self._speak(name, message, guard.action, samples, control)
        self._watch_overoptimization(model, samples, control)

    def _watch_overoptimization(self, model: Any, samples: list[dict[str, Any]], control: Any) -> None:
        history = [line for line in self.lines if "reward_heldout_mean" in line]
        if not history or history[-1] is not self.lines[-1]:
            return
        action, patience = self.guards.on_overoptimization, self.guards.overoptimization_patience
        best = max(history, key=lambda line: line["reward_heldout_mean"])
        if action == "keep_best" and best is history[-1] and self.writes:
            save_file(get_peft_model_state_dict(model), self.run.best_adapter)
        if "overoptimization" in self.spoken or not is_overoptimizing(history, patience):
            return
        message = (
            f"for {patience} evaluations in a row the trained reward rose while the held-out judge's fell, from "
            f"{history[-patience - 1]['reward_heldout_mean']:.2f} to {history[-1]['reward_heldout_mean']:.2f}: "
            f"over-optimization; the held-out judge liked step {best['step']} best"
        )
        if action == "keep_best":
            processes.wait()
            set_peft_model_state_dict(model, load_file(self.run.best_adapter))
            message += ", whose adapter was restored"
        self._speak("overoptimization", message, "warn" if action == "warn" else "stop", samples, control)

    def _speak(self, guard: str, message: str, action: str, samples: list[dict[str, Any]], control: Any) -> None:
        self.spoken.add(guard)
        step = self.lines[-1]["step"]
        if self.writes:
            row = {"step": step, "guard": guard, "message": message, "action": action, "samples": samples}
            append_lines(self.run.guards, [row])
            tqdm.write(f"guard, step {step}: {message} (samples in {self.run.guards})")
        if action == "stop":
            self.because = guard
            control.should_save = True
            control.should_training_stop = True


def window_mean(lines: list[dict[str, Any]], name: str, window: int) -> float | None:
    """The mean of a metric over the last `window` steps; None before that many, or where one of them lacks it."""
    values = [line[name] for line in lines[-window:] if name in line]
    return sum(values) / window if len(values) == window else None


def is_overoptimizing(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether, in each of the last `patience` evaluations, the trained reward rose and the held-out judge's fell."""
    last = history[-patience - 1 :]
    return len(last) > patience and all(
        now["reward_fixed_mean"] > before["reward_fixed_mean"]
        and now["reward_heldout_mean"] < before["reward_heldout_mean"]
        for before, now in pairwise(last)
    )
