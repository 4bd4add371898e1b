"""benchmarks/first_hour.sh: its commands are there and take their options, and a row is written as it goes."""

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "benchmarks" / "first_hour.sh")
PRINTED = subprocess.run([SCRIPT, "--dry-run"], capture_output=True, text=True, check=True).stdout
ROWS = dict(re.findall(r"^(\w+), at most \d+ minutes: (.*)$", PRINTED, re.MULTILINE))
MISSING = (ROOT / "benchmarks" / "results" / "README.md").read_text().split("## What is missing")[1]


@cache
def options(*command):
    """What `--help` says that a command takes. Fails where it cannot be had."""
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[\w-]+", done.stdout))


@pytest.mark.parametrize("name", ROWS)
def test_every_command_and_its_options_exist(name):
    python, *words = shlex.split(ROWS[name])
    assert python == "python"
    command = tuple(words[:2] if words[0] == "-m" else words[:1])
    if command == ("-m", "pytest"):
        assert words == ["-m", "pytest", "-m", "gpu", "-n", "0"]
        return
    asked = {word for word in words if word.startswith("--")}
    assert asked <= options(*command)
    # a value that is none of an option's choices is refused before --help is come to
    subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, timeout=100, check=True)


def test_what_the_results_lack_is_what_is_run():
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| [^|]+ \| ([^|]+) \|", MISSING, re.MULTILINE)))) == set(
        ROWS
    )
    minutes = list(map(int, re.findall(r"at most (\d+) minutes", PRINTED)))
    assert sum(minutes[:7]) <= 60  # at their longest; what is left has room where they are quicker
    assert "benchmarks/first_hour.sh" in MISSING


@pytest.fixture
def card(tmp_path):
    """A PATH with a card's nvidia-smi, and a python whose every command ends at once, Unsloth's with an error."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA Test, 24564 MiB, 580.1'\n")
    (tmp_path / "python").write_text(
        f'#!/bin/sh\ncase "$1" in -) exec {sys.executable} "$@";; esac\n'
        'case "$*" in *unsloth*) exit 3;; esac\necho "ran $*"\n'
    )
    for tool in ("nvidia-smi", "python"):
        (tmp_path / tool).chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


def test_a_row_is_written_as_it_goes_and_an_error_does_not_end_the_hour(card, tmp_path):
    folder = tmp_path / "out"
    run = [SCRIPT, str(folder)]
    subprocess.run(run, env={"PATH": card, "MINUTES": "600"}, capture_output=True, check=True)
    rows = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(rows) == set(ROWS)
    assert rows["unsloth"]["exit"] == 3
    assert {row["exit"] for name, row in rows.items() if name != "unsloth"} == {0}
    assert rows["longest_24gb"]["card"].startswith("NVIDIA Test")
    again = subprocess.run(run, env={"PATH": card, "MINUTES": "600"}, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[0].startswith("unsloth: python")  # the only one that has not ended well
    short = subprocess.run(
        [SCRIPT, str(tmp_path / "short")],
        env={"PATH": card, "MINUTES": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gpu_tests: left out" in short.stdout


def test_without_a_card_it_says_so(tmp_path):
    done = subprocess.run([SCRIPT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no card" in done.stderr
