"""What of the Dockerfile can be told without a Docker engine."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]
COPIES = [shlex.split(rest) for step, rest in STEPS if step == "COPY"]


def test_every_base_is_pinned_by_a_tag():
    bases = [rest.split()[0] for step, rest in STEPS if step == "FROM" and "$" not in rest]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", base) for base in bases)


def test_the_torch_that_a_cpu_gets_is_the_locked_one():
    locked = re.search(r"^torch==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    pinned = re.search(r"pip install torch==(\S+) --index-url https://download.pytorch.org/whl/cpu", TEXT)
    assert locked
    assert pinned
    assert pinned[1] == locked[1]
    assert "-c requirements-gpu.lock '.[app,gpu]'" in TEXT
    assert "-c requirements.lock '.[app]';" in TEXT


def test_it_ends_as_a_user_without_rights_with_the_training_command():
    assert [rest for step, rest in STEPS if step == "USER"] == ["grlo"]
    assert "useradd --create-home --uid 10001 grlo" in TEXT
    assert STEPS[-1] == ["CMD", '["python", "-m", "grlo_lite.train"]']
    after = [step for step, _ in STEPS[[step for step, _ in STEPS].index("USER") :]]
    assert "RUN" not in after


def test_the_code_comes_after_what_it_needs():
    order = [rest for step, rest in STEPS if step in ("COPY", "RUN")]
    requirements = next(i for i, rest in enumerate(order) if "-c requirements.lock" in rest)
    assert order.index("grlo_lite grlo_lite") > requirements
    assert order.index("pyproject.toml requirements.lock requirements-gpu.lock ./") < requirements


def test_who_binds_a_folder_of_the_host_can_write_it():
    """A bind mount belongs to whoever made it, whom the image does not know."""
    comments = "\n".join(
        line.removeprefix("# ") for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] == "#"
    )
    runs = [line for line in comments.replace("\\\n", "").splitlines() if line.startswith("docker run")]
    assert len(runs) == 3
    assert all('--user "$(id -u)"' in line for line in runs if "$PWD" in line)
    assert "chmod -R a+rwX /grlo /models" in TEXT  # that user is not the image's own
    assert "HOME=/grlo USER=grlo" in TEXT  # nor has it a home and a name: getpass.getuser() would fail


@pytest.fixture
def context(tmp_path):
    """The build's folder: what COPY takes, as far as .dockerignore lets it through."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for *sources, target in COPIES:
        for pattern in sources:
            assert pattern in kept or any(fnmatch.fnmatch(pattern, rule) for rule in kept), pattern
            found = list(ROOT.glob(pattern))
            assert found or pattern == "*.py", pattern
            for path in found:
                place = tmp_path / (path.name if target == "./" else target)
                if path.is_dir():
                    shutil.copytree(path, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, place)
    return tmp_path


def test_what_is_copied_installs_and_runs(context):
    """`pip install --no-deps .` in the copied files alone gives a package that finds its recipes and its models."""
    site = context / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(context)], check=True, capture_output=True)
    assert list((site / "grlo_lite" / "microcosm" / "assets").rglob("*.safetensors"))
    asked = "from grlo_lite.recipe.loading import __file__, load; print(__file__, load('microcosm', []).model.name)"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=site,
        env={"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "grlo_lite" / "recipe" / "loading.py"), "microcosm"]
