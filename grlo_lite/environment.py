"""What a run ran on: versions, device, hashes; the content of environment.json."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "unsloth", "unsloth_zoo")


def facts(recipe_name: str, policy: Any, judges: list, rows: list, seed: int) -> dict[str, Any]:
    """Versions, device, seed, model commits, and hashes of the prompt set and the chat template."""
    import torch

    from grlo_lite.prompts import prompt_hash

    return {
        "recipe": recipe_name,
        "versions": {"python": platform.python_version(), **versions()},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "driver": driver() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backend": policy.backend,
        "seed": seed,
        "model_commit": getattr(policy.model.config, "_commit_hash", None),
        "reward_model_commits": {name: getattr(model.model.config, "_commit_hash", None) for name, _, model in judges},
        "prompts_sha256": prompt_hash(rows),
        "template_sha256": hashlib.sha256(policy.tokenizer.chat_template.encode()).hexdigest(),
        "git_commit": _command("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    return _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
