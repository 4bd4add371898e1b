"""Writes a line of metrics a step, and samples and checkpoints; shows the progress bar."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from grlo_lite.machine import processes
from grlo_lite.models.critic import Critic
from grlo_lite.models.policy import trainable_in_fp32
from grlo_lite.monitoring import metrics
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rewards.scored_batch import ScoredBatch, joined
from grlo_lite.rundir.disk_space import checkpoint_bytes, require_space_for_checkpoint
from grlo_lite.rundir.files import append_lines, read_lines
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import duration


@dataclass(eq=False)
class Recorder(TrainerCallback):
    """Writes one line of metrics and a few samples a rollout step, and makes checkpoints at rollout boundaries only.

    A rollout step is one batch of completions and the `updates_per_rollout` optimizer updates made of it.
    """

    run: RunDir
    recipe: Recipe
    elapsed_seconds: Callable[[], float]
    heldout: Callable[[int], dict[str, float]]
    halvings: Halvings
    pace: Pace
    critic: Critic | None = None  # PPO's, a part of every checkpoint
    scored: ScoredBatch | None = None  # this process's part of the newest batch
    batch: ScoredBatch | None = None  # the newest one, of all processes
    bar: tqdm | None = None
    checkpoint_bytes: int = 0  # what the next checkpoint is expected to take
    logs: list[dict[str, float]] = field(default_factory=list)
    last_line: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)  # of the newest rollout, where another program sampled it

    def __post_init__(self):
        before = (read_lines(self.run.metrics) or [{}])[-1]
        self.rollouts, self.generated_tokens = before.get("rollouts", 0), before.get("generated_tokens", 0)
        self.budget, self.updates = self.recipe.budget, self.recipe.algorithm.updates_per_rollout
        # the metric by which a checkpoint is the best
        self.best_by = "reward_mean" if self.recipe.reward.heldout.name is None else "reward_heldout_mean"
        self.writes = processes.is_main()
        self.checkpoint_made = time.monotonic()

    def take(self, batch: ScoredBatch) -> None:
        """Takes the batch that the next step's metrics are of, as soon as it is scored."""
        self.scored = batch

    def on_train_begin(self, args, state, control, model=None, **_):
        trainable_in_fp32(model)  # a checkpoint that was loaded may have brought another dtype
        done, steps = (count // self.updates for count in (state.global_step, state.max_steps))
        critics = self.critic.checkpoint_bytes if self.critic else 0
        self.checkpoint_bytes = self.checkpoint_bytes or checkpoint_bytes(model) + critics
        self.logs = []
        self.close_bar()
        self.bar = tqdm(
            total=steps, initial=done, unit="step", desc="train", dynamic_ncols=True, disable=not self.writes
        )

    def on_train_end(self, args, state, control, **_):
        self.close_bar()

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_step_begin(self, args, state, control, **_):
        if state.global_step % self.updates == 0:
            self.step_began = time.monotonic()
            self.halvings.step = state.global_step // self.updates + 1
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args, state, control, **_):
        step, inside = divmod(state.global_step, self.updates)
        if inside:
            return
        minutes = (time.monotonic() - self.checkpoint_made) / 60
        late = self.budget.checkpoint_minutes is not None and minutes >= self.budget.checkpoint_minutes
        if step % self.budget.checkpoint_every == 0 or state.global_step == state.max_steps or processes.agreed(late):
            control.should_save = True
        if control.should_save:
            require_space_for_checkpoint(self.run, step, self.checkpoint_bytes)

    def on_log(self, args, state, control, logs=None, optimizer=None, model=None, **_):
        if not logs or "loss" not in logs:
            return
        logs = metrics.without_overflow(logs, optimizer)
        self.logs.append(metrics.with_entropy(logs, getattr(model, "generate", None)))
        step, inside = divmod(state.global_step, self.updates)
        if inside:
            return
        assert self.scored is not None
        assert self.bar is not None
        self.batch = joined(processes.gathered(self.scored))
        line = self._line_of(step, self.batch, args) | self.heldout(step)
        self.logs = []
        if self.writes:
            samples = metrics.samples(step, self.batch, self.recipe.logging.samples_per_step)
            append_lines(self.run.samples, samples)
            append_lines(self.run.metrics, [line])
        self.last_line = line
        tokens_per_second = line["generated_tokens_step"] / (time.monotonic() - self.step_began)
        left = self._left(line)
        self.bar.set_postfix_str(
            f"reward {line['reward_mean']:+.2f}, {tokens_per_second:.0f} tokens/s{left}", refresh=False
        )
        self.bar.update()

    def _left(self, line: dict[str, Any]) -> str:
        """What the progress bar says of the time left; says as well where the run is far from its plan."""
        left, deviation = self.pace.left(line), self.pace.deviation()
        if deviation is not None and self.writes:
            tqdm.write(deviation)
        if left is None:
            return ""
        if self.budget.hours is not None:
            left = min(left, max(0.0, self.budget.hours * 3600 - line["elapsed_seconds"]))
        return f", {duration(left)} left"

    def on_save(self, args, state, control, **_):
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.adopt(written, state.global_step // self.updates)

    def adopt(self, written: Path, step: int) -> None:
        """Makes what the trainer wrote the checkpoint of `step`; to be called in every process."""
        processes.wait()
        if self.writes:
            if self.critic:
                self.critic.save(written)
            self.checkpoint_bytes = sum(file.stat().st_size for file in written.rglob("*"))
            score = self.last_line.get(self.best_by)
            self.run.adopt_checkpoint(written, step, self.budget.checkpoints_kept, score, processes.count())
        self.checkpoint_made = time.monotonic()
        processes.wait()

    def latest(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The newest step's metrics, and eight samples of its batch."""
        if self.batch is None or not self.last_line:
            return self.last_line, []
        return self.last_line, metrics.samples(self.last_line["step"], self.batch, 8)

    def why_no_signal(self) -> str | None:
        """Why the newest step taught nothing; None where it taught something."""
        return metrics.why_no_signal(self.batch, self.recipe.reward) if self.batch else None

    def _line_of(self, step: int, batch: ScoredBatch, args: Any) -> dict[str, Any]:
        now = time.monotonic()
        tokens = int(batch.tokens_B.sum())
        self.rollouts += len(batch.tokens_B)
        self.generated_tokens += tokens
        line = {
            "step": step,
            **metrics.batch_metrics(batch),
            **{key: metrics.logged_mean(self.logs, key) for key in ("entropy", "kl", "loss", "grad_norm")},
            "clip_fraction": metrics.logged_mean(self.logs, "clip_ratio/region_mean"),
            **{key: metrics.logged_mean(self.logs, key) for key in metrics.OF_A_CRITIC},
            "learning_rate": self.logs[-1]["learning_rate"],
            **self.drift,
            "generated_tokens_step": tokens,
            "generated_tokens": self.generated_tokens,
            "rollouts": self.rollouts,
            "micro_batch": args.per_device_train_batch_size,
            "effective_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "rollout_seconds": batch.began - self.step_began,
            "reward_seconds": batch.ended - batch.began,
            "update_seconds": now - batch.ended,
            "peak_vram_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "elapsed_seconds": self.elapsed_seconds(),
        }
        skipped = sum("skipped_update" in log for log in self.logs)
        return {key: value for key, value in line.items() if value is not None} | (
            {"skipped_update": skipped, "grad_norm": line["grad_norm"]} if skipped else {}
        )
