"""Seconds, peak memory and tokens of a step by phase."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from benchmarks.full_shape.random_models import SHAPES

PHASES = ("rollout", "reward", "update")


class Phases:
    """The phases' seconds, peak memory and tokens of each step, told by `begin` and `end`."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.steps: list[dict[str, Any]] = []
        self.profile = ""

    def begin(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.monotonic()

    def end(self, phase: str) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
            self.steps[-1][f"{phase}_peak_bytes"] = torch.cuda.max_memory_allocated()
            self.steps[-1][f"{phase}_reserved_bytes"] = torch.cuda.max_memory_reserved()
        self.steps[-1][f"{phase}_seconds"] = time.monotonic() - self.began
        self.begin()


def clock(
    rewards: Callable[..., list[float]], phases: Phases, profile: bool
) -> tuple[Any, Callable[..., list[float | None]]]:
    """A callback for TRL's trainer and the reward function to hand to it, which together fill in `phases`.

    What stands before the rewards is the rollout, what comes after is the update.
    """
    import torch
    from transformers import TrainerCallback

    profiler = torch.profiler.profile()

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            phases.steps.append({})
            if profile and state.global_step + 1 == state.max_steps:
                profiler.start()
            phases.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            phases.end("update")
            if profile and state.global_step == state.max_steps:
                profiler.stop()
                phases.profile = operators(profiler, phases.on_gpu)

    def reward(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float | None]:
        phases.end("rollout")
        given = rewards(prompts=prompts, completions=completions, completion_ids=completion_ids, **more)
        phases.steps[-1]["completion_tokens"] = sum(map(len, completion_ids))
        phases.steps[-1]["prompt_tokens"] = sum(len(p[-1]["content"].split()) for p in prompts)
        phases.end("reward")
        return list(given)

    return Clock(), reward


def operators(profiler: Any, on_gpu: bool) -> str:
    """The operators that took the most time, as a table."""
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def capped(arguments: argparse.Namespace) -> Any:
    """The device, with the process held to the cap of GPU memory."""
    import torch

    from grlo_lite.machine.device import this_device

    device, cap = this_device(), arguments.cap_gib or SHAPES[arguments.shape]["cap_gib"]
    if device.type == "cuda" and cap:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    return device


def what_was_measured(phases: Phases, loaded_bytes: int | None) -> dict[str, Any]:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = phases.steps[1:]
    return {"steps": steps, "loaded_bytes": loaded_bytes, "peak_resident_bytes": peak, "profile": phases.profile}


def loaded(device: Any) -> int | None:
    import torch

    return torch.cuda.memory_allocated() if device.type == "cuda" else None
