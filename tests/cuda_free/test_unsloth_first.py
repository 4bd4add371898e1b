"""Unsloth is imported before all that it patches, by whatever command: a stand-in for it looks who was first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL_SHAPE = str(Path(__file__).parents[2] / "benchmarks" / "full_shape.py")
STAND_IN = """
import os, sys
print("first:", sorted({"transformers", "trl", "peft"} & set(sys.modules)), flush=True)
os._exit(7)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "grlo_lite.train", "microcosm", "backend=unsloth"),
        (FULL_SHAPE, "--shape", "microcosm", "--only", "ours", "--backend", "unsloth"),
        (FULL_SHAPE, "--shape", "microcosm", "--only", "ours", "--backend", "unsloth", "--probe"),
    ],
    ids=["train", "full_shape", "full_shape --probe"],
)
def test_nothing_that_unsloth_patches_is_imported_before_it(words, tmp_path):
    (tmp_path / "unsloth.py").write_text(STAND_IN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "first: []" in done.stdout, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
