"""Fixtures of the whole suite. No test reaches a network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def train() -> Command:
    """Runs `python -m grlo_lite.train WORDS`, returns what it printed, and fails unless it exits with `code`."""

    def run(*words: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "grlo_lite.train", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
        assert done.returncode == code, f"{done.returncode}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def trained(train: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run directory of one whole microcosm run, seed 0, and what the command printed."""
    path = tmp_path_factory.mktemp("runs") / "microcosm"
    return path, train("--run-dir", path).stdout


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real prompts and questions, kept out of the project for their licences."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA
