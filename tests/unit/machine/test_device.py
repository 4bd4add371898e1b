"""How many threads a model gets, and how they wait."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from grlo_lite import cli
from grlo_lite.machine import device


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(parameters, kind="cpu"):
    weight = torch.empty(parameters, device="meta")
    return SimpleNamespace(device=torch.device(kind), parameters=lambda: [weight])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("made", "users", "threads"),
    [
        (model(900_000), None, 1),
        (model(135_000_000), None, 2),
        (model(900_000), "2", 2),
        (model(900_000, "cuda"), None, 2),
    ],
)
def test_a_small_model_gets_one_thread_unless_the_user_says_otherwise(made, users, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users:
        monkeypatch.setenv("OMP_NUM_THREADS", users)
    device.settle_threads(made)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("users", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)],
)
def test_threads_wait_passively_unless_the_user_says_otherwise(users, policy, monkeypatch):
    for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(key, "")  # so that what the command sets is taken back as well
        monkeypatch.delenv(key)
    for key, value in users.items():
        monkeypatch.setenv(key, value)
    assert cli.run_command(lambda: 0) == 0
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_no_command_imports_torch_before_it_is_run():
    """OpenMP reads how to wait when torch is imported."""
    imports = "; ".join(f"import grlo_lite.{command}" for command in cli.COMMANDS)
    program = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
