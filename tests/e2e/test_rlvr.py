"""Rewards that are no reward model, and a second stage on a first one's adapter, as a user runs them."""

import json
import shutil

import pytest

from grlo_lite import evaluate
from grlo_lite.cli import run_command
from grlo_lite.errors import BadInput
from grlo_lite.models import first_stage, names
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.train import main

SHORT = ("budget.steps=2", "rollout.max_tokens=16", "evaluation.suite=none", "evaluation.heldout_prompts=0")
FIRST = names.DEMO / "adapter" / "adapter_model.safetensors"


def trained(path, *words):
    assert main([*map(str, words), "--run-dir", str(path)]) == 0
    return files.read_lines(path / "metrics.jsonl")


FIVE_LINES = """
def concise(prompts, completions, **columns):
    answers = [completion[0]["content"] for completion in completions]
    ends = [answer.endswith(".") for answer in answers]
    return [end - len(answer) / 200 for end, answer in zip(ends, answers)]

def breaks(completions, **columns):
    return [1 / len(c[0]["content"].replace("e", "")[:0]) for c in completions]
"""


@pytest.fixture
def five_lines(tmp_path):
    (tmp_path / "mine.py").write_text(FIVE_LINES)
    return tmp_path / "mine.py"


def test_a_file_of_five_lines_and_a_grader_train_together_without_a_reward_model(five_lines, tmp_path):
    lines = trained(
        tmp_path / "r", "microcosm-rlvr", f"reward.python={five_lines}:concise", "evaluation.heldout_prompts=8",
        *SHORT[:3],
    )  # fmt: skip
    assert all(line["grad_norm"] > 0 for line in lines)
    for part in (f"{five_lines}:concise", "microcosm-arithmetic"):
        assert all(f"score_mean/{part}" in line for line in lines)
    environment, recipe = (
        files.read_json(tmp_path / "r" / "environment.json"),
        recipes.load(str(tmp_path / "r" / "recipe.yaml"), []),
    )
    assert environment["reward_model_commits"] == {}
    assert recipe.reward.name is None
    [task] = files.read_json(tmp_path / "r" / "evaluation.json")["tasks"]
    assert (task["task"], task["n"]) == ("heldout-prompts", 8)
    assert "reward `" in (tmp_path / "r" / "adapter" / "README.md").read_text()


def test_a_function_that_breaks_ends_the_run_in_one_line(five_lines, tmp_path, capsys):
    words = ["microcosm-rlvr", "reward.verifiable=[]", f"reward.python={five_lines}:breaks", *SHORT]
    assert run_command(lambda: main([*words, "--run-dir", str(tmp_path / "r")])) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"raised ZeroDivisionError: division by zero at {five_lines}:8, in the batch of the prompt" in line
    assert not (tmp_path / "r").exists()


def test_code_needs_leave(tmp_path):
    row = {"prompt": "Write add(a, b), the sum.", "test_list": ["assert add(1, 2) == 3"]}
    (tmp_path / "code.jsonl").write_text(
        "".join(json.dumps(row | {"prompt": row["prompt"] + "!" * i}) + "\n" for i in range(6))
    )
    words = ["microcosm", "reward.name=null", "reward.verifiable=code", f"prompts.source={tmp_path / 'code.jsonl'}",
             "prompts.near_duplicates=null", "prompts.max_tokens=512", "budget.steps=1", *SHORT[1:]]  # fmt: skip
    with pytest.raises(BadInput, match="--allow-code-execution"):
        main([*words, "--run-dir", str(tmp_path / "r")])
    [line] = trained(tmp_path / "r", *words, "--allow-code-execution")
    assert line["score_mean"] == 0


def test_gsm8k_trains_two_steps_from_its_own_answers(shared_data, tmp_path):
    lines = trained(
        tmp_path / "r", "microcosm", "reward.name=null", "reward.verifiable=mathematics", "prompts.max_tokens=512",
        f"prompts.source={shared_data / 'gsm8k_test.jsonl'}", "prompts.decontaminate=false", *SHORT,
    )  # fmt: skip
    assert [line["step"] for line in lines] == [1, 2]


def test_reasoning_gym_trains_two_steps(tmp_path):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    lines = trained(
        tmp_path / "r", "microcosm", "reward.name=null", "reward.verifiable=reasoning-gym", "prompts.limit=64",
        "prompts.source=reasoning-gym:chain_sum", "prompts.decontaminate=false", *SHORT,
    )  # fmt: skip
    assert [line["step"] for line in lines] == [1, 2]


@pytest.fixture(scope="module")
def second_stage(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "second"
    before = files.file_sha256(FIRST)
    trained(
        path, "microcosm-grlo-then-rlvr", "budget.steps=4", "budget.checkpoint_every=2", "evaluation.limit=20",
        "evaluation.heldout_prompts=8", "prompts.limit=200",
    )  # fmt: skip
    assert files.file_sha256(FIRST) == before == files.read_json(names.DEMO / "summary.json")["adapter_sha256"]
    return path


def test_a_second_stage_tells_where_it_comes_from(second_stage):
    [stage] = files.read_json(second_stage / "environment.json")["lineage"]
    assert (stage["recipe"], stage["reward"], stage["rollouts"]) == ("microcosm", "microcosm", 1280)
    assert stage["adapter_sha256"] == files.file_sha256(FIRST)
    assert f"SHA-256 `{stage['adapter_sha256'][:16]}…`" in (second_stage / "adapter" / "README.md").read_text()
    assert files.file_sha256(second_stage / "adapter" / "adapter_model.safetensors") != stage["adapter_sha256"]


def test_a_second_stage_is_held_against_the_first_and_the_base(second_stage, capsys):
    """The first stage's arm answers as the first stage's own evaluation has it: same questions, seed and adapter."""
    found = files.read_json(second_stage / "evaluation.json")
    assert found["arms"] == ["base", "tuned", "stage_1"]
    for task in found["tasks"]:
        first = task["against_stage_1"]
        assert first["difference"] == pytest.approx(task["tuned"] - first["base"])
    assert found["average_against_stage_1"]["base"] > found["average"]["base"] + 0.2
    assert evaluate.main([str(second_stage), "--limit", "10"]) == 0
    printed = capsys.readouterr().out
    assert "base plain   base  stage 1  tuned  difference" in printed
    assert "against stage 1, paired: microcosm-arithmetic " in printed


def test_a_second_stage_resumes_bit_for_bit(second_stage, tmp_path):
    """As if it had been killed after its third step: the last checkpoint is the second's."""
    path = tmp_path / "again"
    shutil.copytree(second_stage, path)
    for left in ("checkpoints/step-4", "adapter"):
        shutil.rmtree(path / left)
    (path / "summary.json").unlink()
    assert main(["--resume", "--run-dir", str(path)]) == 0
    ended = [files.read_json(run / "summary.json")["adapter_sha256"] for run in (path, second_stage)]
    assert ended[0] == ended[1]
    assert (path / "samples.jsonl").read_text() == (second_stage / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["lora.rank=8"], r"trained with another lora\.rank; set lora\.rank=16"),
        (["lora.alpha=16"], r"set lora\.alpha=32"),
        (["model.quantization=none"], r"trained with another model\.quantization; set model\.quantization=nf4"),
        (["model.name=Qwen/Qwen3-0.6B-Base"], r"trained with another model\.name; set model\.name=microcosm"),
        (["cpu_dtype=bf16"], r"set cpu_dtype=fp32"),
        (["model.adapter=runs/nowhere"], r"there is no such run; train its first stage, or name a run by --from RUN"),
        (["model.adapter=recipes"], r"model\.adapter='recipes': .* is neither a run directory"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_refused(overrides, told):
    with pytest.raises(BadInput, match=told):
        first_stage.found(recipes.load("microcosm-grlo-then-rlvr", overrides))


def test_a_first_stage_of_another_template_or_other_layers_is_refused(tmp_path):
    shutil.copytree(names.DEMO, tmp_path / "first")
    environment = files.read_json(tmp_path / "first" / "environment.json")
    files.write_json(tmp_path / "first" / "environment.json", environment | {"template_sha256": "0" * 64})
    words = ["microcosm", "--from", str(tmp_path / "first"), *SHORT, "--run-dir", str(tmp_path / "r")]
    with pytest.raises(BadInput, match="was trained with another chat template than"):
        main(words)
    files.write_json(tmp_path / "first" / "environment.json", environment)
    with pytest.raises(BadInput, match=r"adapts other layers than lora\.targets does"):
        main([*words, "lora.targets=[q_proj]"])


def test_kl_beside_a_first_stage_is_refused():
    with pytest.raises(BadInput, match=r"algorithm\.kl=0\.1 beside model\.adapter"):
        recipes.load("microcosm-grlo-then-rlvr", ["algorithm.kl=0.1"])
