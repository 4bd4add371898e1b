"""The lock file and the declared ranges agree; the core install pulls in nothing that breaks it."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name):
    """The versions of a lock file by name."""
    return {
        requirement.name.lower().replace("_", "-"): next(iter(requirement.specifier)).version
        for requirement in map(Requirement, (ROOT / name).read_text().splitlines()[2:])
    }


LOCKED, LOCKED_GPU = locked("requirements.lock"), locked("requirements-gpu.lock")


def test_the_lock_is_within_every_declared_range():
    declared = (
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + PROJECT["optional-dependencies"]["eval"]
    )
    for requirement in map(Requirement, declared):
        if requirement.name != "grlo-lite":
            assert requirement.specifier.contains(LOCKED[requirement.name.lower().replace("_", "-")]), requirement


def test_the_lock_for_a_gpu_is_within_every_declared_range_and_as_the_other_lock():
    declared = (
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["app"] + PROJECT["optional-dependencies"]["gpu"]
    )
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(LOCKED_GPU[requirement.name.lower().replace("_", "-")]), requirement
    assert {name: LOCKED_GPU[name] for name in LOCKED if name in LOCKED_GPU} == {
        name: version for name, version in LOCKED.items() if name in LOCKED_GPU
    }


def test_unsloth_is_one_that_leaves_a_qwen3_judge_as_it_is():
    """2026.10.7 patches Qwen3's classes: a judge loaded before the policy dies. Newer ones want certifi 2026.10.19."""
    (unsloth,) = map(Requirement, PROJECT["optional-dependencies"]["gpu"])
    assert "2026.10.7" not in unsloth.specifier
    assert "2026.10.9" in unsloth.specifier
    assert LOCKED["certifi"] == LOCKED_GPU["certifi"]
    assert Version(LOCKED["certifi"]) >= Version("2026.10.19")
    assert "tests/cuda_free/resolves.sh" in (ROOT / ".ci" / "run").read_text()


def test_neither_torchvision_nor_unsloth_comes_with_the_core():
    assert not {"torchvision", "unsloth", "vllm"} & set(LOCKED)


def test_the_pins_that_were_measured():
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert "1.15.0" not in ranges["trl"]  # cannot train on a CPU
    assert "2.14.0" not in ranges["torch"]  # vLLM and Unsloth do not take it
    assert "5.18.0" not in ranges["transformers"]
