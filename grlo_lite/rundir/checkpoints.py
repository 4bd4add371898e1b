"""Checkpoints: their manifest, what is wrong with a damaged one."""

import json
from pathlib import Path
from typing import Any

from grlo_lite.rundir.files import content_sha256, file_sha256

MANIFEST = "manifest.json"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made, from its folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None where it is byte for byte as it was written."""
    manifest = manifest_of(checkpoint)
    if isinstance(manifest, str):
        return manifest
    for name, (size, sha256) in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
        if file_sha256(file) != sha256:
            return f"{name} is not what was written"
    return None


def manifest_of(checkpoint: Path) -> dict[str, Any] | str:
    """A checkpoint's manifest, or what is wrong with it."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        claimed = manifest.pop("manifest_sha256")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST} is no manifest"
    return manifest if claimed == content_sha256(manifest) else f"{MANIFEST} was changed"
