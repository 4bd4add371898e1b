"""lm-eval's tasks through the kit, base against tuned, on files and on the shipped run."""

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grlo_lite import evaluate as command
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.answer_store import AnswerStore
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
DRAWN = """\
output_type: generate_until
doc_to_target: "{{options[right]}}"
repeats: 3
generation_kwargs: {do_sample: true, temperature: 1.0, max_gen_toks: 24, until: []}
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
KEPT = re.compile("^(task|dataset_path|dataset_kwargs|test_split|doc_to_text|metadata):.*\n", re.MULTILINE)
CHANGED = {  # YAML of one's own, made of that which counts
    "calling": lambda counting: f"{counting}process_docs: !function code.rows\n",
    "drawing": lambda counting: "".join(m[0] for m in KEPT.finditer(counting)) + DRAWN,
    "distant": lambda counting: (
        re.sub("dataset_path: json|dataset_kwargs:.*", "", counting) + "dataset_path: nobody/nowhere\n"
    ),
    "unpaired": lambda counting: counting.replace("matthews_corrcoef", "some_aggregation"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    lm_eval_files.write(folder, 8)
    own = folder / "own"
    counting = (own / "counting.yaml").read_text()
    for name, change in CHANGED.items():
        (own / f"{name}.yaml").write_text(change(counting.replace("task: counting", f"task: {name}")))
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


def test_a_dry_run_says_what_each_task_and_arm_takes_and_loads_no_weights(run, data, monkeypatch, capsys):
    monkeypatch.setattr(trained_adapter, "load", None)
    words = ["--tasks", "counting,drawing", "--include-path", str(data / "own"), "--dry-run"]
    assert command.main([str(run), *words, "--suite", "microcosm", "--limit", "60", "--gpu", "rtx4090"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    answers = {(line[0], " ".join(line[1:-6])): line[-5] for line in lines if line[0].startswith("lm-eval:")}
    assert answers == {
        (f"lm-eval:{task}", arm): count
        for task, count in (("counting", "0"), ("drawing", "24"))
        for arm in ("base", "tuned", "base plain")
    }
    together = next(line for line in lines if line[0] == "together")
    assert float(together[-1]) >= 0
    assert ["--limit", "50:"] in [line[:2] for line in lines]
    assert not (run / "answers.sqlite").exists()


@pytest.mark.parametrize(
    ("tasks", "words", "told"),
    [
        ("countin", (), "did you mean counting"),
        ("counting", ("--num-fewshot", "2"), "--num-fewshot 2: lm-eval:counting has no examples apart"),
        ("calling", (), "calling.yaml, line .* runs Python .* --allow-task-code"),
        ("counting", ("--gpu", "l4"), "--gpu=l4 names a card to plan for; add --dry-run"),
        ("counting", ("--gpu", "l5", "--dry-run"), "--gpu 'l5' is not known"),
        ("unpaired", (), "lm-eval:unpaired: its metric mcc cannot be paired"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(run, data, tasks, words, told):
    with pytest.raises(BadInput, match=told):
        asked_for(run, data, tasks, *words)
    assert not (run / "evaluation.json").exists()


def test_a_task_that_needs_a_network_is_refused_with_the_file_that_would_serve(run, data):
    words = ["--tasks", "distant", "--include-path", str(data / "own")]
    with pytest.raises(BadInput, match=r"data set nobody/nowhere cannot be loaded .*distant\.jsonl.*--data-dir"):
        command.main([str(run), *words])
    assert not (run / "evaluation.json").exists()


@pytest.mark.slow
def test_killed_within_a_task_and_between_two_it_goes_on_to_the_same_files(data, tmp_path, monkeypatch):
    """Killed at once behind a batch of the first task, of its last one, and of one in the middle of the second."""
    words = ["--tasks", "counting,drawing", "--include-path", str(data / "own"), "--tokens-per-batch", "128"]
    whole, killed = (shutil.copytree(DEMO / "adapter", tmp_path / name / "adapter").parent for name in ("a", "b"))
    for path in (whole, killed):
        for name in ("recipe.yaml", "environment.json"):
            shutil.copy(DEMO / name, path)
    batches: list[int] = []
    keep = AnswerStore.keep
    monkeypatch.setattr(AnswerStore, "keep", lambda store, rows: batches.append(len(rows)) or keep(store, rows))
    assert command.main([str(whole), *words]) == 0
    scored, drawn = 3 * 8 * 4, 3 * 8 * 3  # arms, documents, options or answers
    assert sum(batches) == scored + drawn
    first = next(n for n in range(len(batches)) if sum(batches[:n]) >= scored)
    for at in (2, first, first + 3):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(at - kept_batches(killed, batches)), str(killed), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert kept_batches(killed, batches) == at
        assert not (killed / "evaluation.json").exists()
    assert command.main([str(killed), *words]) == 0
    for name in ("evaluation.json", "answers.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    asked = len(batches)
    assert command.main([str(killed), *words]) == 0
    assert len(batches) == asked  # nothing was asked, and so nothing kept
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


KILLED = """
import os, signal, sys
from grlo_lite import evaluate
from grlo_lite.evaluation.answer_store import AnswerStore
keep, left = AnswerStore.keep, [int(sys.argv[1])]
def killed(store, rows):
    keep(store, rows)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerStore.keep = killed
evaluate.main(sys.argv[2:])
"""


def kept_batches(path, batches):
    """How many of the batches are in a run's store."""
    if not (path / "answers.sqlite").exists():
        return 0
    with closing(sqlite3.connect(path / "answers.sqlite")) as connection:
        count = connection.execute("SELECT count(*) FROM kept").fetchone()[0]
    return next(n for n in range(len(batches) + 1) if sum(batches[:n]) == count)


@pytest.mark.slow
def test_a_task_without_its_file_is_refused_with_the_name_of_the_file(run, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match=r"arc_challenge.*arc_challenge\.jsonl"):
        command.main([str(run), "--tasks", "arc_challenge", "--data-dir", str(tmp_path / "none")])
    assert not (run / "evaluation.json").exists()
