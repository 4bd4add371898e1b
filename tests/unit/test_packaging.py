"""The lock file and the declared ranges agree; the core install pulls in nothing that breaks it."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {
    requirement.name.lower().replace("_", "-"): next(iter(requirement.specifier)).version
    for requirement in map(Requirement, (ROOT / "requirements.lock").read_text().splitlines()[2:])
}


def test_the_lock_is_within_every_declared_range():
    declared = (
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + PROJECT["optional-dependencies"]["eval"]
    )
    for requirement in map(Requirement, declared):
        if requirement.name != "grlo-lite":
            assert requirement.specifier.contains(LOCKED[requirement.name.lower().replace("_", "-")]), requirement


def test_neither_torchvision_nor_unsloth_comes_with_the_core():
    assert not {"torchvision", "unsloth", "vllm"} & set(LOCKED)


def test_the_pins_that_were_measured():
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert "1.15.0" not in ranges["trl"]  # cannot train on a CPU
    assert "2.14.0" not in ranges["torch"]  # vLLM and Unsloth do not take it
    assert "5.18.0" not in ranges["transformers"]
