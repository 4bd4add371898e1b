"""What a run ran on: versions, device, hashes; the content of environment.json."""

import platform
from pathlib import Path
from typing import Any

import torch

from grlo_lite.machine.versions import command_output, driver, versions
from grlo_lite.models.trained_adapter import template_sha256
from grlo_lite.prompts import prompt_hash


def facts(recipe_name: str, policy: Any, judges: list, rows: list, seed: int) -> dict[str, Any]:
    """Versions, device, seed, model commits, and hashes of the prompt set and the chat template."""
    on_gpu = torch.cuda.is_available()
    return {
        "recipe": recipe_name,
        "versions": {"python": platform.python_version(), **versions()},
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "driver": driver() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "backend": policy.backend,
        "seed": seed,
        "model_commit": getattr(policy.model.config, "_commit_hash", None),
        "reward_model_commits": {name: getattr(model.model.config, "_commit_hash", None) for name, _, model in judges},
        "prompts_sha256": prompt_hash(rows),
        "template_sha256": template_sha256(policy.tokenizer),
        "git_commit": command_output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }
