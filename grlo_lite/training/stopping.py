"""What ends a run in order: its budget, and signals."""

import signal
import time
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

from grlo_lite.machine import processes
from grlo_lite.recipe.schema import Budget


@dataclass(eq=False)
class Stops(TrainerCallback):
    """Ends a run at the next rollout boundary when it is interrupted or its budget is spent; `because` says which.

    The first SIGINT or SIGTERM lets the step finish; a second one ends the process at once, as if there were no
    handler.
    """

    budget: Budget
    updates_per_rollout: int
    seconds_before: float
    began: float = field(default_factory=time.monotonic)
    because: str = "steps"
    interrupted: bool = False

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of this run so far, those before a resumption included."""
        return self.seconds_before + time.monotonic() - self.began

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """Makes both signals KeyboardInterrupt again: after training there is no step to finish."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)

    def _on_signal(self, number: int, _: Any) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)
        print(f"\n{signal.Signals(number).name}: finishing this step and saving; once more ends at once", flush=True)

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.updates_per_rollout:
            return
        reasons = [reason for reason in processes.gathered(self._reason()) if reason]
        if reasons:
            self.because = reasons[0]
            control.should_save = True
            control.should_training_stop = True

    def _reason(self) -> str | None:
        hours = self.elapsed_seconds / 3600
        if self.interrupted:
            return "interrupted"
        if self.budget.hours is not None and hours >= self.budget.hours:
            return "hours"
        if self.budget.usd is not None and hours * (self.budget.usd_per_hour or 0) >= self.budget.usd:
            return "usd"
        return None
