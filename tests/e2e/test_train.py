"""The job as a user runs it, on the microcosm: it learns, it repeats, it can fail, and its directory is as
documented.
"""

import html
import importlib.util
import json
import re

import pytest
import yaml

from grlo_lite.evaluation import end_of_run
from grlo_lite.microcosm import world
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir

METRICS = {
    "step", "reward_mean", "reward_std", "score_mean", "score_std", "completion_tokens_mean", "truncated_fraction",
    "repetition_fraction", "entropy", "loss", "grad_norm", "learning_rate", "generated_tokens", "rollouts",
    "rollout_seconds", "reward_seconds", "update_seconds", "elapsed_seconds",
}  # fmt: skip
unsloth = pytest.param("unsloth", marks=pytest.mark.unsloth)
SHORT = (
    "budget.steps=4",
    "evaluation.suite=none",
    "evaluation.heldout_prompts=0",
    "algorithm.updates_per_rollout=1",
)


def evaluation(path):
    return json.loads((path / "evaluation.json").read_text())


def learnt(path):
    """Fails unless the held-out reward and every domain rose beyond their intervals, the domains by 0.25 on mean."""
    result = evaluation(path)
    assert {task["domain"] for task in result["tasks"]} == {"chat", *world.VERIFIABLE}
    for task in result["tasks"]:
        assert task["ci_low"] > 0, task
    assert result["average"]["difference"] >= 0.25


def test_it_learns_what_it_was_never_asked(trained):
    path = trained.path
    learnt(path)
    assert evaluation(path)["average"]["tuned"] >= 0.88  # 0.901 to 0.935 over the README's five seeds
    asked = {row["prompt"] for row in files.read_lines(path / "samples.jsonl")}
    assert asked <= set(world.chat_prompts(held_out=False))


def test_a_run_ends_with_its_report_and_keeps_its_answers(trained):
    assert f"the report is {trained.path / 'report.html'}\n" in trained.printed
    rows = files.read_lines(trained.path / "answers.jsonl")
    for task in evaluation(trained.path)["tasks"]:
        for arm in ("base", "tuned"):
            scores = [row["score"] for row in rows if (row["task"], row["arm"]) == (task["task"], arm)]
            assert len(scores) == task["n"]
            assert sum(scores) / len(scores) == pytest.approx(task[arm])
    heldout = sum(row["task"] == "heldout-chat" for row in rows) // 2
    planned = end_of_run.answer_bytes(end_of_run.measurement(recipes.load("microcosm", [])), heldout)
    assert (trained.path / "answers.jsonl").stat().st_size < planned < 2**23  # what the disk is asked for
    report = (trained.path / "report.html").read_text()
    assert 'class="missing"' not in report
    assert 'class="refused"' not in report
    asked = {html.escape(row["prompt"]) for row in rows}
    shown = re.findall(r'class="pair"><p class="asked" dir="auto">([^<]*)<', report)
    assert len(shown) == 10
    assert set(shown) <= asked


def test_the_run_directory_is_as_documented(trained):
    run = RunDir(trained.path)
    for name in (
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation.json",
        "summary.json",
    ):
        assert (run.path / name).is_file()
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    ):
        assert (run.adapter / name).is_file()
    recipe = yaml.safe_load(run.recipe.read_text())
    lines = files.read_lines(run.metrics)
    assert [line["step"] for line in lines] == list(range(1, recipe["budget"]["steps"] + 1))
    assert all(set(line) >= METRICS for line in lines)
    assert "peak_vram_gib" not in lines[0]
    assert "kl" not in lines[0]
    samples = files.read_lines(run.samples)
    assert len(samples) == recipe["logging"]["samples_per_step"] * recipe["budget"]["steps"]
    assert set(samples[0]) >= {"step", "prompt", "completion", "reward", "length", "truncated"}
    summary = json.loads(run.summary.read_text())
    assert summary["steps"] == 40
    assert summary["rollouts"] == 40 * 32
    assert summary["generated_tokens"] == lines[-1]["generated_tokens"]
    assert summary["reward_last"] > summary["reward_first"]
    assert summary["stopped_because"] == "steps"
    assert summary["adapter_sha256"] == files.file_sha256(run.adapter / "adapter_model.safetensors")
    environment = json.loads(run.environment.read_text())
    assert {"torch", "trl", "peft", "bitsandbytes"} <= set(environment["versions"])
    assert len(environment["prompts_sha256"]) == len(environment["template_sha256"]) == 64
    assert [p.name for p in run.checkpoint_folders()][-2:] == ["step-30", "step-40"]
    assert {p.name for p in run.checkpoints.iterdir()} == {"step-30", "step-40"}


def test_the_first_line_says_which_recipe_and_the_last_ones_what_came_out(trained):
    path, printed = trained.path, trained.printed
    assert printed.startswith("recipe microcosm: none was named")
    tasks = [rf"{domain} +microcosm-{domain}" for domain in world.VERIFIABLE]
    for row in (r"chat +heldout-chat \(reward\)", *tasks, "average of tasks"):
        interval = r"\[[+-]\d\.\d+, [+-]\d\.\d+\]"
        end = "$" if row.startswith("average") else r" +(yes|no) \(p \S+\) +\d\.\d{3}$"
        assert re.search(rf"^{row} .* {interval}{end}", printed, re.MULTILINE), row
    assert "python -m grlo_lite.train seed=1" in printed
    assert str(path / "adapter") in printed


def test_speed_and_memory(trained):
    assert trained.seconds <= 90
    assert trained.peak_gib <= 2


def test_shuffled_rewards_teach_nothing(train, trained, tmp_path):
    train("--run-dir", tmp_path / "r", "reward.shuffle=true", "budget.steps=24")
    shuffled, real = evaluation(tmp_path / "r")["average"], evaluation(trained.path)["average"]
    assert abs(shuffled["difference"]) <= 0.05
    assert shuffled["base"] == real["base"]  # the same questions of the same base
    assert real["difference"] > 5 * abs(shuffled["difference"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["transformers", unsloth])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_both_algorithms_learn_on_both_backends(train, trained, tmp_path, backend, algorithm):
    if (backend, algorithm) == ("transformers", "grpo"):
        return learnt(trained.path)
    if backend == "unsloth" and importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    path = tmp_path / "r"
    train("--run-dir", path, f"backend={backend}", f"algorithm.name={algorithm}", "evaluation.limit=150",
          "budget.steps=24", cwd=tmp_path)  # fmt: skip
    assert json.loads((path / "environment.json").read_text())["backend"] == backend
    return learnt(path)


@pytest.mark.slow
def test_the_same_seed_repeats_and_another_differs(train, tmp_path):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("--run-dir", tmp_path / name, f"seed={seed}", *SHORT)
        hashes.append(json.loads((tmp_path / name / "summary.json").read_text())["adapter_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_micro_batches_and_several_updates_a_rollout(train, tmp_path):
    path = tmp_path / "r"
    words = (
        "optimizer.micro_batch=8",
        "algorithm.updates_per_rollout=2",
        "algorithm.kl=0.01",
        "budget.checkpoint_every=3",
    )
    train("--run-dir", path, *SHORT, *words)
    lines = files.read_lines(path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["rollouts"] for line in lines] == [32, 64, 96, 128]
    assert all(line["kl"] >= 0 for line in lines)
    assert [p.name for p in RunDir(path).checkpoint_folders()][-2:] == ["step-3", "step-4"]


@pytest.mark.slow
def test_the_released_prompts_train_as_they_stand(train, shared_data, tmp_path):
    path = tmp_path / "r"
    source = f"prompts.source={shared_data / 'grlo_prompts_1000.jsonl'}"
    done = train("--run-dir", path, source, "budget.steps=4", "evaluation.suite=none")
    assert re.search(r"^over 256 tokens, cut +662 +1,000 ", done.stdout, re.MULTILINE)
    assert "prompts: 900 to train on, 100 held out" in done.stdout
    assert len(files.read_lines(path / "metrics.jsonl")) == 4
    assert (path / "summary.json").is_file()
