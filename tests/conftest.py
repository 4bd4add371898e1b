"""Fixtures of the whole suite. No test reaches a network."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRLO_LITE_PROBES"] = str(
    Path(__file__).parent / "no-probes.json"
)  # what was measured on this machine decides no test
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # else runs of tests would stand beside the user's own
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores: more threads would only spin
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
def benchmark_script() -> Callable[[str], ModuleType]:
    """The module of a script in `benchmarks`, by its name, read anew at every call."""

    def read(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read


class Trained(NamedTuple):
    """One whole microcosm run, seed 0: its directory, what the command printed, its peak memory and its wall time."""

    path: Path
    printed: str
    peak_gib: float
    seconds: float


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("runs") / "microcosm"
    printed = path.with_suffix(".txt")
    began = time.monotonic()
    with printed.open("w") as output:
        child = subprocess.Popen([sys.executable, "-m", "grlo_lite.train", "--run-dir", str(path)], stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, printed.read_text()
    return Trained(path, printed.read_text(), usage.ru_maxrss / 2**20, time.monotonic() - began)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real prompts and questions, kept out of the project for their licences."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA
