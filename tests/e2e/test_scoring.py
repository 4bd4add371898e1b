"""The scorers on the data sets' own reference answers, and beside lm-eval's; the whole tables are benchmarks'."""

from pathlib import Path

import pytest

from grlo_lite.evaluation.tasks import code, instructions, questions
from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
from grlo_lite.grading import sandbox

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# The last of AIME 2024's solutions to question 60 boxes nothing and is signed "-sepehr2010": its last number is 2010
UNREADABLE_SOLUTIONS = {("aime24", "60")}


@pytest.fixture
def scoring(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scoring

    return scoring


@pytest.mark.parametrize(
    "task", [mathematics_tasks.GSM8K, mathematics_tasks.MATH500, mathematics_tasks.AIME24, mathematics_tasks.AMC23]
)
def test_every_reference_is_right_in_every_wording_and_hardly_any_other(shared_data, scoring, task):
    pytest.importorskip("math_verify")
    rows = questions.rows_of(next(shared_data / name for name in task.files if (shared_data / name).is_file()))
    asked = task.questions(rows)
    assert len(asked) == {"gsm8k": 1319, "math500": 500, "aime24": 30, "amc23": 40}[task.name]
    refused = {
        (task.name, q.id) for q in asked for text in scoring.worded(task, q).values() if not task.judged(q, text).score
    }
    assert refused == set()
    own = scoring.solutions(task, rows)
    refused = {(task.name, q.id) for q in asked if own and not task.judged(q, own[q.id]).score}
    assert refused <= UNREADABLE_SOLUTIONS
    wrong = [q.id for q, o in scoring.others(asked) if task.judged(q, scoring.worded(task, o)["boxed"]).score]
    assert len(wrong) <= 0.01 * len(asked), wrong


@pytest.mark.skipif(bool(sandbox.unavailable()), reason=sandbox.unavailable() or "confined")
def test_humanevals_canonical_solutions_pass_and_others_do_not(shared_data, scoring):
    asked = questions.questions_of(code.HUMANEVAL, shared_data, None)
    assert len(asked) == 164
    assert [q.id for q in asked if not code.judged_humaneval(q, q.reference).score] == []
    pairs = list(scoring.others(asked))[::8]
    assert [q.id for q, o in pairs if code.judged_humaneval(q, o.data["prompt"] + o.reference).score] == []


ATTACKS = {
    "a fork bomb": "import os\n    while True:\n        os.fork()",
    "an endless loop": "while True:\n        pass",
    "a 10 GB allocation": "return bytearray(10 * 2**30)",
    "a file outside its folder": "return open({outside!r}, 'w')",
    "a network call": "import socket\n    return socket.create_connection(('127.0.0.1', 80))",
}


@pytest.mark.skipif(bool(sandbox.unavailable()), reason=sandbox.unavailable() or "confined")
def test_attacks_are_failed_answers_and_the_evaluation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "SECONDS", 2.0)
    row = {
        "task_id": "t/1",
        "prompt": "def double(x):\n",
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4",
    }
    (question,) = code.humaneval([row])
    outside = tmp_path / "written"
    for body in ATTACKS.values():
        answer = f"```python\ndef double(x):\n    {body.format(outside=str(outside))}\n```"
        assert code.judged_humaneval(question, answer).score == 0
        assert code.judged_humaneval(question, question.reference).score == 1
    assert not outside.exists()


def test_where_lm_evals_bundled_task_says_otherwise_ours_is_right(shared_data, scoring, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    pytest.importorskip("math_verify")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import agreement

    file = tmp_path / "aime24.jsonl"
    file.write_text("".join((shared_data / "aime24.jsonl").read_text().splitlines(keepends=True)))
    rows = questions.rows_of(file)
    asked = mathematics_tasks.AIME24.questions(rows)
    for wording, agreeing in (("boxed, three digits", 30), ("bare", 7)):
        texts = agreement.answers(mathematics_tasks.AIME24, asked, rows, wording)
        theirs = agreement.bundled_scores(mathematics_tasks.AIME24, file, texts)["exact_match,none"]
        ours = [mathematics_tasks.judged_number(q, text).score for q, text in zip(asked, texts, strict=True)]
        right = [i % 4 != 3 for i in range(30)]  # every fourth answer is another question's
        assert ours == [float(r) for r in right]
        assert sum(o == t for o, t in zip(ours, theirs, strict=True)) == agreeing


def test_ifeval_is_scored_by_lm_evals_own_checks(monkeypatch):
    pytest.importorskip("langdetect")
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "find", lambda _: None)  # punkt_tab, which these instructions do not need
    row = {
        "key": 1,
        "prompt": "Say something without commas, in lower case.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    }
    (question,) = instructions.ifeval([row])
    assert instructions.judged(question, "here is something in lower case").score == 1
    broken = instructions.judged(question, "here is something, in lower case")
    assert (broken.score, broken.why) == (0, "not followed: punctuation:no_comma")


def test_ifeval_without_its_data_is_missing_before_anything_is_asked(monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    assert "python -m nltk.downloader punkt_tab" in instructions.unavailable()
