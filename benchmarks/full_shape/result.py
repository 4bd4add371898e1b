"""What was measured, as JSON and as a table."""

import argparse
import platform
import statistics
import sys
from typing import Any

from benchmarks.full_shape.clock import PHASES
from benchmarks.full_shape.random_models import SHAPES


def summary(arguments: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of the JSON: what was run on what, each side's phases, and how they compare."""
    import torch

    from grlo_lite.machine import versions

    shape = SHAPES[arguments.shape]
    on_gpu = torch.cuda.is_available()
    phases = {side: phases_of(measured) for side, measured in sides.items()}
    ratio = {}
    if len(sides) == 2:
        ours, trl = phases["ours"], phases["trl"]
        ratio = {key: ours[key] / trl[key] for key in ("step_seconds", *(f"{phase}_seconds" for phase in PHASES))}
    return {
        "command": command(arguments),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine() + " cpu",
        "driver": versions.driver() if on_gpu else None,
        "versions": versions.versions(),
        "threads": torch.get_num_threads(),
        "cap_gib": (arguments.cap_gib or shape["cap_gib"]) if on_gpu else None,
        "shape": shape,
        "engine": arguments.engine,
        "backend": arguments.backend,
        "steps": arguments.steps,
        "sides": phases,
        "ours_over_trl": ratio,
        "plan": sides.get("ours", {}).get("plan"),
        "planned_by_probe": arguments.probe,
        "out_of_memory": sides.get("ours", {}).get("out_of_memory"),
        "profile": {side: measured["profile"] for side, measured in sides.items() if measured["profile"]},
    }


def command(arguments: argparse.Namespace) -> str:
    """What to type for the same again, but for where the result goes."""
    given = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    return " ".join(["python benchmarks/full_shape.py", *given])


def phases_of(measured: dict[str, Any]) -> dict[str, Any]:
    """Medians over the measured steps: seconds, share and tokens a second of each phase; and the highest peaks."""
    steps = measured["steps"]

    def middle(key: str) -> float:
        return statistics.median(step[key] for step in steps)

    whole = statistics.median(sum(step[f"{phase}_seconds"] for phase in PHASES) for step in steps)
    tokens = middle("completion_tokens")
    read = {"rollout": tokens, **dict.fromkeys(("reward", "update"), tokens + middle("prompt_tokens"))}
    found: dict[str, Any] = {"step_seconds": whole, "completion_tokens": tokens}
    for phase in PHASES:
        seconds = middle(f"{phase}_seconds")
        found |= {
            f"{phase}_seconds": seconds,
            f"{phase}_share": seconds / whole,
            f"{phase}_tokens_a_second": read[phase] / seconds,
        }
        for kind in ("peak", "reserved"):
            if f"{phase}_{kind}_bytes" in steps[0]:
                found[f"{phase}_{kind}_gib"] = max(step[f"{phase}_{kind}_bytes"] for step in steps) / 2**30
    if measured["loaded_bytes"]:
        found["loaded_gib"] = measured["loaded_bytes"] / 2**30
    return found | {"peak_resident_gib": measured["peak_resident_bytes"] / 2**30}


def phases_table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, a side a row, with the profiles below it."""
    lines = [
        f"{result['device']}, cap {result['cap_gib'] or 'none'}, engine {result['engine']}",
        "| | seconds a step | rollout | reward | update | rollout tokens/s | completion tokens | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side, found in result["sides"].items():
        peaks = [found[f"{phase}_peak_gib"] for phase in PHASES if f"{phase}_peak_gib" in found]
        shares = " | ".join(f"{found[f'{phase}_seconds']:.2f} ({found[f'{phase}_share']:.0%})" for phase in PHASES)
        lines.append(
            f"| {side} | {found['step_seconds']:.2f} | {shares} | {found['rollout_tokens_a_second']:,.0f} "
            f"| {found['completion_tokens']:,.0f} | {max(peaks, default=found['peak_resident_gib']):.2f} |"
        )
    if result["plan"]:
        lines += phase_peaks(result["sides"]["ours"], result["plan"])
        by = " by --probe" if result["planned_by_probe"] else ""
        lines.append(f"planned{by}: " + ", ".join(f"{key} {value:.2f}" for key, value in result["plan"].items()))
    if result["ours_over_trl"]:
        lines.append("ours / TRL: " + ", ".join(f"{k} {v:.2f}" for k, v in result["ours_over_trl"].items()))
    return "\n".join([*lines, *(f"\n{side}\n{profile}" for side, profile in result["profile"].items())])


def phase_peaks(found: dict[str, Any], planned: dict[str, float]) -> list[str]:
    """A line of peak memory by phase beside the plan's; none on a CPU."""
    peaks = [
        f"{phase} {found[f'{phase}_peak_gib']:.2f} ({planned[f'{phase}_gib']:.2f})"
        for phase in PHASES
        if f"{phase}_peak_gib" in found
    ]
    return [f"peak GiB (planned, with the CUDA context): {', '.join(peaks)}"] if peaks else []
