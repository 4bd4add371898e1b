"""The ten changes of CONTRIBUTING.md, made as they stand there on a copy of the package, and seen to work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w+)(?: file=(\S+))?\n(.*?)```", re.DOTALL)
SECTIONS = {
    title.strip(): text
    for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its recipes, for a change to be made in."""
    without = shutil.ignore_patterns("__pycache__", "shipped")
    shutil.copytree(ROOT / "grlo_lite", tmp_path / "grlo_lite", ignore=without)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "grlo_lite" / "recipe" / "shipped").symlink_to(tmp_path / "recipes")
    return tmp_path


def changed(copy, title):
    """Makes a section's change: its new files, and its rows in place of the lines that they stand beside."""
    for kind, file, text in BLOCK.findall(SECTIONS[title]):
        if file:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_text(text)
        elif kind == "diff":
            for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", text, re.M | re.S):
                lines = body.splitlines()
                old = "\n".join(line[1:] for line in lines if line[:1] != "+")
                new = "\n".join(line[1:] for line in lines if line[:1] != "-")
                before = (copy / name).read_text()
                assert before.count(old) == 1, f"{name} has these lines {before.count(old)} times:\n{old}"
                (copy / name).write_text(before.replace(old, new))
    return copy


def run(copy, *words, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


SHORT = (
    "budget.steps=2", "rollout.max_tokens=16", "evaluation.suite=none", "evaluation.heldout_prompts=0",
    "prompts.limit=64", "prompts.decontaminate=false",
)  # fmt: skip


def trained(copy, *words):
    run(copy, "-m", "grlo_lite.train", *words, *SHORT, "--run-dir", "r")
    return [json.loads(line) for line in (copy / "r" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_change_stands_there():
    assert list(SECTIONS) == [
        "A Python function as a reward",
        "A recipe",
        "An evaluation task",
        "A card in the planner",
        "A plot on the run page",
        "An algorithm",
        "A guard",
        "A prompt source",
        "A rollout engine",
        "A tab in the app",
    ]


@pytest.mark.slow
def test_a_python_function_as_a_reward(copy):
    lines = trained(changed(copy, "A Python function as a reward"), "reward.python=brevity.py:brevity")
    assert all(line["score_mean/brevity.py:brevity"] < 0 for line in lines)


@pytest.mark.slow
def test_a_recipe(copy):
    assert "recipe microcosm-brief\n" in run(changed(copy, "A recipe"), "-m", "grlo_lite.plan", "microcosm-brief")
    assert trained(copy, "microcosm-brief")[-1]["step"] == 2


@pytest.mark.slow
def test_an_evaluation_task(copy):
    changed(copy, "An evaluation task")
    rows = [{"country": "Peru", "capital": "Lima"}, {"country": "Chad", "capital": "N'Djamena"}]
    (copy / "questions").mkdir()
    (copy / "questions" / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(ROOT / "grlo_lite" / "microcosm" / "assets" / "demo", copy / "demo")
    printed = run(copy, "-m", "grlo_lite.evaluate", "demo", "--suite", "knowledge", "--data-dir", "questions")
    assert re.search(r"^geography +capitals +2 ", printed, re.MULTILINE)
    [task] = json.loads((copy / "demo" / "evaluation.json").read_text())["tasks"]
    assert (task["task"], task["n"]) == ("capitals", 2)


@pytest.mark.slow
def test_a_card_in_the_planner(copy):
    printed = run(changed(copy, "A card in the planner"), "-m", "grlo_lite.plan", "qwen3-4b-24gb", "--gpu", "rtx5090")
    assert "rtx5090, 31.36 GiB: fits" in printed


@pytest.mark.slow
def test_a_plot_on_the_run_page(copy):
    changed(copy, "A plot on the run page")
    program = (
        "from pathlib import Path; from grlo_lite.reporting.sections import overview; print(overview(Path('demo')))"
    )
    shutil.copytree(ROOT / "grlo_lite" / "microcosm" / "assets" / "demo", copy / "demo")
    assert "of the optimizer" in run(copy, "-c", program)


@pytest.mark.slow
def test_an_algorithm(copy):
    lines = trained(changed(copy, "An algorithm"), "algorithm.name=batch_grpo")
    assert all(line["grad_norm"] > 0 for line in lines)


@pytest.mark.slow
def test_a_guard(copy):
    changed(copy, "A guard")
    trained(copy, "guards.completion_tokens_mean.limit=1", "guards.window=1")
    spoken = [json.loads(line) for line in (copy / "r" / "guards.jsonl").read_text().splitlines()]
    assert "answers have become very long" in {row["guard"]: row for row in spoken}["completion_tokens_mean"]["message"]


@pytest.mark.slow
def test_a_prompt_source(copy):
    words = ("microcosm", "prompts.source=rhymes", "prompts.near_duplicates=null", "prompts.limit=6")
    trained(changed(copy, "A prompt source"), *words)
    asked = {json.loads(line)["prompt"] for line in (copy / "r" / "samples.jsonl").read_text().splitlines()}
    assert all("two lines that rhyme" in prompt for prompt in asked)


@pytest.mark.slow
def test_a_rollout_engine(copy):
    lines = trained(changed(copy, "A rollout engine"), "rollout.engine=group_by_group")
    assert [line["rollouts"] for line in lines] == [32, 64]


@pytest.mark.slow
def test_a_tab_in_the_app(copy):
    changed(copy, "A tab in the app")
    program = (
        "from grlo_lite.app.page import TABS; from grlo_lite.app.tabs.recipe import recipe_tab\n"
        "print(list(TABS), TABS['Recipe'] is recipe_tab)"
    )
    assert "'Results', 'Recipe', 'Run'] True" in run(copy, "-c", program)
