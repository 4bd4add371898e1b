"""lm-eval's tasks through the kit, base against tuned, on files and on the shipped run."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grlo_lite import evaluate as command
from grlo_lite.errors import BadInput
from grlo_lite.models import names, trained_adapter
from grlo_lite.rundir import files

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import lm_eval_files  # noqa: E402

TASKS = "arc_easy,lambada_openai,wikitext,lm-eval:gsm8k,wmdp,counting"
KINDS = {
    "arc_easy": "multiple_choice",
    "lambada_openai": "loglikelihood",
    "wikitext": "loglikelihood_rolling",
    "gsm8k": "generate_until",
    "wmdp_bio": "multiple_choice",
    "wmdp_chem": "multiple_choice",
    "wmdp_cyber": "multiple_choice",
    "counting": "multiple_choice",
}
DEMO = names.ASSETS / "demo"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    lm_eval_files.write(folder, 8)
    own = folder / "own"
    calling = (own / "counting.yaml").read_text().replace("task: counting", "task: calling")
    (own / "calling.yaml").write_text(calling + "process_docs: !function code.rows\n")
    (own / "code.py").write_text("def rows(documents):\n    return documents\n")
    return folder


@pytest.fixture
def run(tmp_path):
    """The shipped run, in a directory of the test's own."""
    return Path(shutil.copytree(DEMO, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json")))


def asked_for(run, data, tasks, *words, others=()):
    where = ["--data-dir", str(data), "--include-path", str(data / "own")]
    assert (
        command.main([str(run), *map(str, others), "--tasks", tasks, "--max-tokens", "24", *where, *map(str, words)])
        == 0
    )
    return files.read_json(run / "evaluation.json")


@pytest.mark.slow
def test_any_kind_of_task_is_asked_of_both_arms_with_intervals_and_the_second_time_costs_nothing(run, data, capsys):
    found = asked_for(run, data, TASKS)
    rows = {row["task"].removeprefix("lm-eval:"): row for row in found["tasks"]}
    assert {name: row["kind"] for name, row in rows.items()} == KINDS
    for row in rows.values():
        assert row["n"] >= 8
        assert row["difference"] == pytest.approx(row["tuned"] - row["base"])
        assert row["ci_low"] <= row["difference"] <= row["ci_high"], row
    assert rows["wikitext"]["interval"] == "paired bootstrap"
    assert not rows["wikitext"]["higher_is_better"]
    assert rows["gsm8k"]["truncated"]["base"] > 0
    (group,) = (row for row in found["groups"] if row["metric"] == "acc")
    sizes = [rows[f"wmdp_{part}"]["n"] for part in ("bio", "chem", "cyber")]
    for arm in ("base", "tuned"):
        weighted = sum(n * rows[f"wmdp_{part}"][arm] for n, part in zip(sizes, ("bio", "chem", "cyber"), strict=True))
        assert group[arm] == pytest.approx(weighted / sum(sizes))
    first = (run / "answers.jsonl").read_bytes()

    from grlo_lite.generation import decoding, whole

    with pytest.MonkeyPatch.context() as patched:  # what is kept is not asked again
        patched.setattr(decoding, "decode", lambda *_: pytest.fail("it decodes"))
        patched.setattr(whole, "continuation_log_probs", lambda *_: pytest.fail("it scores"))
        assert asked_for(run, data, TASKS) == found
    assert (run / "answers.jsonl").read_bytes() == first


@pytest.mark.slow
def test_the_numbers_are_lm_evals_own_on_the_same_model(run, data):
    """lm-eval's own class for Transformers, given the very model with its adapter on and off."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from grlo_lite.evaluation.harness import loading
    from grlo_lite.evaluation.harness.served import Serving

    tasks = ["arc_easy", "lambada_openai", "wikitext", "counting"]
    found = asked_for(run, data, ",".join(tasks), "--no-chat-template")
    rows = {row["task"].removeprefix("lm-eval:"): row for row in found["tasks"]}
    policy = trained_adapter.load(trained_adapter.find(run, None))
    for arm in ("base", "tuned"):
        loaded = loading.load(tasks, data / "own", Serving(data, None, False, False), 0)
        with trained_adapter.in_effect(policy.model, arm), torch.no_grad():
            model = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=1, max_length=1024)
            theirs = evaluate(lm=model, task_dict=dict(loaded.tasks), bootstrap_iters=0, log_samples=False)
        assert theirs is not None
        for name, row in rows.items():
            said = theirs["results"][name][f"{row['metric'].partition(',')[0]},none"]
            assert row[arm] == pytest.approx(said, rel=1e-4, abs=1e-9), (name, arm)


def test_a_task_of_ones_own_alone_and_a_second_adapter(run, data, capsys):
    found = asked_for(run, data, "counting", others=[run / "adapter"])
    (row,) = found["tasks"]
    assert row["n"] == 8
    assert [(step["arm"], step["from"], step["difference"]) for step in row["steps"] if step["from"] == "tuned"] == [
        ("tuned_2", "tuned", 0.0)
    ]
    assert "tuned_2" in found["arms"]


@pytest.mark.parametrize(
    ("tasks", "words", "told"),
    [
        ("countin", (), "did you mean counting"),
        ("counting", ("--num-fewshot", "2"), "--num-fewshot 2: lm-eval:counting has no examples apart"),
        ("calling", (), "calling.yaml, line .* runs Python .* --allow-task-code"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(run, data, tasks, words, told):
    with pytest.raises(BadInput, match=told):
        asked_for(run, data, tasks, *words)
    assert not (run / "evaluation.json").exists()


@pytest.mark.slow
def test_a_task_without_its_file_is_refused_with_the_name_of_the_file(run, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match=r"arc_challenge.*arc_challenge\.jsonl"):
        command.main([str(run), "--tasks", "arc_challenge", "--data-dir", str(tmp_path / "none")])
    assert not (run / "evaluation.json").exists()
