"""What needs a CUDA GPU; elsewhere it is skipped with the reason."""

import json
from importlib.util import find_spec

import pytest
import torch

from grlo_lite import rundir

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_the_microcosm_learns_on_a_gpu(train, tmp_path, backend):
    if backend == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    path = tmp_path / "r"
    train("--run-dir", path, f"backend={backend}", cwd=tmp_path)
    assert json.loads((path / "evaluation.json").read_text())["average"]["difference"] >= 0.25
    assert all(line["peak_vram_gib"] > 0 for line in rundir.read_lines(path / "metrics.jsonl"))
    assert json.loads((path / "summary.json").read_text())["gpu_hours"] > 0
