"""Base against tuned as a user runs it, on the microcosm: it measures, repeats, resumes, and asks two arms indeed."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
import torch

from grlo_lite import evaluate as command
from grlo_lite.errors import BadInput
from grlo_lite.generation import answers
from grlo_lite.generation.request import Sampling
from grlo_lite.grading import sandbox
from grlo_lite.microcosm import world
from grlo_lite.models import chat_template, names, quantization, trained_adapter
from grlo_lite.rundir import files

CPU = torch.device("cpu")
CONTRACT = {
    "task", "domain", "metric", "n", "base", "tuned", "difference", "ci_low", "ci_high", "p_value",
    "smallest_detectable",
}  # fmt: skip
SHORT = ("--limit", "16", "--tokens-per-batch", "600")


def run(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "grlo_lite.evaluate", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"{done.returncode}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def copied(trained, path):
    """A run directory of the test's own; the adapter is what an evaluation reads."""
    path.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        shutil.copy(trained[0] / name, path)
    shutil.copytree(trained[0] / "adapter", path / "adapter")
    return path


def kept(path):
    with closing(sqlite3.connect(path / "answers.sqlite")) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


def answers_of(path, arm):
    return [row["text"] for row in files.read_lines(path / "answers.jsonl") if row["arm"] == arm]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    path = copied(trained, tmp_path_factory.mktemp("evaluated") / "r")
    began = time.monotonic()
    return path, run(path), time.monotonic() - began


def test_the_microcosm_in_a_minute_with_intervals_on_every_domain(evaluated):
    path, printed, seconds = evaluated
    assert seconds <= 60
    result = json.loads((path / "evaluation.json").read_text())
    assert result["suite"] == "microcosm"
    assert result["arms"][:2] == ["base", "tuned"]
    assert {task["domain"] for task in result["tasks"]} == {"chat", *world.VERIFIABLE}
    for task in result["tasks"]:
        assert set(task) >= CONTRACT
        assert task["ci_low"] > 0
        assert task["p_value_holm"] < 0.05
        assert task["domain"] in printed
        assert f"[{task['ci_low']:+.3f}, {task['ci_high']:+.3f}]" in printed
    assert set(result["average"]) >= {"base", "tuned", "difference", "ci_low", "ci_high"}
    assert "more than chance" in printed
    assert "what is beyond the template" in printed
    chat = result["tasks"][-1]
    assert (chat["judge"]["name"], chat["judge"]["relation"]) == (
        "microcosm-heldout",
        "the adapter was trained by microcosm",
    )
    assert chat["base"] + chat["tuned"] == pytest.approx(1)


def test_every_answer_is_kept_with_why_it_was_judged_so(evaluated):
    path, _, _ = evaluated
    rows = files.read_lines(path / "answers.jsonl")
    assert len(rows) == 4 * 300 * 3 + 150 * 2
    asked = {domain: world.exam(domain, 300, seed=0) for domain in world.VERIFIABLE}
    for row in rows[: 4 * 300 * 3]:
        question = asked[row["task"].split("-")[1]][int(row["question"])]
        assert row["score"] == world.is_right(question, row["text"])
        assert (row["why"] == "stated") == bool(row["score"])


def test_it_agrees_with_the_measurement_that_ended_the_training(trained, evaluated):
    trained_tasks = json.loads((trained[0] / "evaluation.json").read_text())["tasks"]
    at_the_end = {task["domain"]: task for task in trained_tasks if task["domain"] != "chat"}
    for task in json.loads((evaluated[0] / "evaluation.json").read_text())["tasks"]:
        if task["domain"] != "chat":  # the same questions, other draws: 4 standard errors of two rates from 300
            for arm in ("base", "tuned"):
                assert task[arm] == pytest.approx(at_the_end[task["domain"]][arm], abs=4 * (2 * 0.25 / 300) ** 0.5)


def test_a_second_run_asks_nothing_and_says_the_same(evaluated, monkeypatch, capsys):
    path, printed, _ = evaluated
    before, count = (path / "evaluation.json").read_bytes(), kept(path)
    monkeypatch.setattr(answers, "answers", None)  # calling it would fail
    assert command.main([str(path)]) == 0
    assert (path / "evaluation.json").read_bytes() == before
    assert kept(path) == count
    assert printed.splitlines()[-12:] == capsys.readouterr().out.splitlines()[-12:]


def test_killed_and_resumed_is_the_uninterrupted_evaluation(trained, tmp_path):
    whole, killed = copied(trained, tmp_path / "whole"), copied(trained, tmp_path / "killed")
    command.main([str(whole), *SHORT])
    process = subprocess.Popen(
        [sys.executable, "-m", "grlo_lite.evaluate", str(killed), *SHORT],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "answers.sqlite").exists() or kept(killed) < 100:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    halfway = kept(killed)
    assert 100 <= halfway < kept(whole)
    assert not (killed / "evaluation.json").exists()
    command.main([str(killed), *SHORT])
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    assert (killed / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert kept(killed) == kept(whole)  # keeping an answer twice would have failed


def test_a_larger_limit_pays_for_the_new_questions_only(trained, tmp_path, monkeypatch):
    path = copied(trained, tmp_path / "r")
    asked = []
    original = answers.answers
    monkeypatch.setattr(answers, "answers", lambda m, t, texts, *s: asked.extend(texts) or original(m, t, texts, *s))
    command.main([str(path), "--limit", "3", "--arm", "tuned"])
    command.main([str(path), "--limit", "5", "--arm", "tuned"])
    assert len(asked) == 5 * 5
    assert len(set(asked)) == 5 * 5
    assert not (path / "evaluation.json").exists()


def test_the_two_arms_are_the_bare_base_and_the_merged_model(trained):
    """Greedy, 50 of 50; the merged model is the adapter added to the very weights that NF4 stands for."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def base():
        return quantization.from_pretrained(AutoModelForCausalLM, str(names.POLICY), "main", "nf4", CPU)

    adapter = trained[0] / "adapter"
    loaded = trained_adapter.load_trained(str(names.POLICY), "main", "nf4", adapter, CPU)
    merged = PeftModel.from_pretrained(base().dequantize(), str(adapter)).merge_and_unload().eval()
    prompts = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 8, seed=1)]
    prompts += world.chat_prompts(held_out=True)[:18]
    texts = [chat_template.formatted(loaded.tokenizer, [{"role": "user", "content": p}]) for p in prompts]
    greedy = {"sampling": Sampling(48, temperature=0.0), "tokenizer": loaded.tokenizer, "texts": texts}
    with loaded.model.disable_adapter():
        one = answers.answers(loaded.model, **greedy)
    other = answers.answers(loaded.model, **greedy)
    for arm, bare in ((one, base().eval()), (other, merged)):
        assert len(arm) == 50
        assert by_transformers(bare, loaded, texts) == [answer.text for answer in arm]
    assert sum(a != b for a, b in zip(one, other, strict=True)) >= 25


def by_transformers(bare, loaded, texts):
    batch = loaded.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ends = loaded.model.generation_config.eos_token_id
    with torch.inference_mode():
        said = bare.generate(**batch, do_sample=False, max_new_tokens=48, eos_token_id=ends, pad_token_id=0)
    return loaded.tokenizer.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_lm_evals_hflm_on_the_model_object_gives_the_same_answers(trained):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    loaded = trained_adapter.load_trained(str(names.POLICY), "main", "nf4", trained[0] / "adapter", CPU)
    loaded.tokenizer.eos_token = "<|im_end|>"
    hflm = huggingface.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, max_length=512, batch_size=8)
    questions = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 4, seed=2)]
    texts = [chat_template.formatted(loaded.tokenizer, [{"role": "user", "content": q}]) for q in questions]
    options = {"until": ["<|im_end|>"], "max_gen_toks": 48, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(texts)]
    for arm in (loaded.model.disable_adapter(), nullcontext()):
        with arm:
            ours = answers.answers(loaded.model, loaded.tokenizer, texts, Sampling(48, temperature=0.0))
            theirs = hflm.generate_until(requests, disable_tqdm=True)
        assert [a.text.strip() for a in ours] == [t.strip() for t in theirs]


def test_an_answer_ends_where_it_ends_whatever_its_neighbours_do(trained):
    loaded = trained_adapter.load_trained(str(names.POLICY), "main", "nf4", trained[0] / "adapter", CPU)
    questions = [q.text for q in world.exam("arithmetic", 6, seed=3)]
    texts = [chat_template.formatted(loaded.tokenizer, [{"role": "user", "content": q}]) for q in questions]
    greedy = Sampling(48, temperature=0.0)
    batch = answers.answers(loaded.model, loaded.tokenizer, [*texts, "um so "], greedy)  # the last one rambles on
    assert max(a.tokens for a in batch[:-1]) < 48
    for text, answer in zip(texts, batch, strict=False):
        assert answers.answers(loaded.model, loaded.tokenizer, [text], greedy) == [answer]
        assert "<|im_end|>" not in answer.text
        assert not answer.truncated
    (short,) = answers.answers(loaded.model, loaded.tokenizer, texts[:1], Sampling(4, temperature=0.0))
    assert (short.tokens, short.truncated) == (4, True)
    word = batch[0].text.split()[2]
    (cut,) = answers.answers(loaded.model, loaded.tokenizer, texts[:1], Sampling(48, 0.0, stops=(word,)))
    assert cut.text == batch[0].text[: batch[0].text.index(word)]
    assert not cut.truncated


def test_real_questions_offline_end_to_end(trained, shared_data, tmp_path, capsys):
    pytest.importorskip("math_verify")
    if sandbox.unavailable():
        pytest.skip(sandbox.unavailable())
    path = copied(trained, tmp_path / "r")
    words = ("--data-dir", str(shared_data), "--limit", "20", "--max-tokens", "16", "--samples", "1")
    command.main([str(path), "--suite", "grlo", *words, "--allow-code-execution"])
    printed = capsys.readouterr().out
    result = json.loads((path / "evaluation.json").read_text())
    tasks = {task["task"]: task for task in result["tasks"]}
    assert set(tasks) == {"math500", "gsm8k", "aime24", "amc23", "humaneval", "chat"}
    assert all(task["n"] == 20 for task in tasks.values())
    assert all(task["tuned"] <= 0.1 for name, task in tasks.items() if name != "chat")  # it knows nothing
    assert [said.split(":")[0] for said in result["missing"]] == [
        "aime25",
        "gpqa_diamond",
        "mmlu_pro",
        "mbpp",
        "ifeval",
    ]
    assert "no aime25.jsonl in" in printed
    assert "another protocol, not comparable: Qwen3-4B-Base" in printed
    assert tasks["math500"]["truncated"]["tuned"] > 0


def test_another_template_than_the_trained_one_is_refused(trained, tmp_path):
    path = copied(trained, tmp_path / "r")
    template = path / "adapter" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant:\n"))
    with pytest.raises(BadInput, match="no longer the one that the run was trained with"):
        command.main([str(path), "--limit", "2"])


def test_an_adapter_without_a_run_is_evaluated_where_it_lies(trained, tmp_path):
    adapter = Path(shutil.copytree(trained[0] / "adapter", tmp_path / "mine"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(BadInput, match="name it by --base"):
        command.main([str(adapter)])
    command.main([str(adapter), "--base", str(names.POLICY), "--limit", "2"])
    result = json.loads((adapter / "evaluation.json").read_text())
    assert result["tasks"][-1]["judge"]["relation"] == "what the adapter was trained by is not known"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--limit", "1"), "--limit=1 is too small"),
        (("--data-dir", "nowhere"), "--data-dir=nowhere is no folder"),
        (("--data-dir", "a" * 5000), f"--data-dir={'a' * 53}…{'a' * 26} is no folder"),
        (("--suite", "code", "--data-dir", "."), "--allow-code-execution"),
        (("--suite", "knowledge", "--data-dir", "."), "no gpqa_diamond.jsonl or gpqa.jsonl in"),
        (("--suite", "chat", "--strict", "--data-dir", "."), "suite chat can be asked: "),
    ],
)
def test_what_the_user_has_to_change_is_said_before_anything_is_loaded(trained, monkeypatch, tmp_path, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained_adapter, "load_trained", None)
    with pytest.raises(BadInput) as refused:
        command.main([str(trained[0]), *words])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_neither_run_nor_adapter(tmp_path):
    with pytest.raises(BadInput, match="neither a run directory"):
        command.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "?"}', "a row is not as gsm8k needs it (KeyError: 'answer')"),
        ('{"question": "?", "answer": "18"}', "a row is not as gsm8k needs it (IndexError"),
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is a list"),
    ],
)
def test_a_bad_question_file_is_named(tmp_path, line, told):
    from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
    from grlo_lite.evaluation.tasks.questions import questions_of

    (tmp_path / "gsm8k.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput) as refused:
        questions_of(mathematics_tasks.GSM8K, tmp_path, None)
    assert told in str(refused.value)
    assert "gsm8k.jsonl" in str(refused.value)
