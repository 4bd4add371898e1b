"""Planted benchmark questions are found, whatever was done to them; real prompts are not taken for them."""

import json
import random
import string

import pytest

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks import suites
from grlo_lite.recipe.schema import DataSet, Part

REAL_SETS = ("gsm8k_test.jsonl", "math500.jsonl", "aime24.jsonl", "amc23.jsonl", "HumanEval.jsonl.gz",
             "arena_hard_v0.1_prompts.jsonl")  # fmt: skip
SUITE_SETS = suites.question_sets()
QUESTION = "A farmer has 17 sheep and buys 5 more every week. How many sheep does she have after 6 weeks?"


def asked(text):
    return [{"role": "user", "content": text}]


def decontaminated(texts, sets, ngram=8, similarity=0.8):
    rows, step, report = prompts.decontaminated([asked(text) for text in texts], sets, ngram, similarity)
    return [row[0]["content"] for row in rows], step, report


def test_a_hit_is_dropped_and_listed_so_that_it_can_be_judged():
    texts = ["Tell me about the farm.", f"Please solve: {QUESTION}"]
    kept, step, report = decontaminated(texts, [prompts.question_set("sums", ["What is 2 + 2 ?", QUESTION])])
    assert kept == texts[:1]
    assert (step.dropped, step.left) == (1, 1)
    assert report["hits"] == [
        {
            "prompt": texts[1],
            "set": "sums",
            "question_id": "2",
            "question": QUESTION,
            "found_by": "near duplicate",
            "shared_words": QUESTION.lower().replace(".", "").replace("?", ""),
            "similarity": 0.859,  # 67 of 78 runs: the question has 71 letters, the prompt 11 more
        }
    ]
    assert report["checked"] == [{"set": "sums", "questions": 2, "hits": 1}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION.upper(), True),
        (QUESTION.replace(" ", " - "), True),
        (QUESTION[len(QUESTION) // 2 :], True),
        (QUESTION.replace("17", "19").replace("6", "7"), True),  # the same with other numbers
        ("She buys 5 more every week. How many", False),  # 7 words in a row, 8 words, not two fifths of the question
        ("What is 2+2?", True),  # a short question, whole
        ("Quick one: what is 2 + 2, please, and why is it so?", True),
        ("What is 2 + 3?", False),
        ("Write a poem", False),  # a piece of a long question
        ("a poem about every", True),  # a piece, and more than two fifths of its question
    ],
)
def test_what_counts_as_a_hit(text, found):
    poem = "Write a poem about every animal of the farm"
    long = "Write a poem about the sea in winter, when the storms of January come over the grey cliffs of the north"
    sets = [prompts.question_set("made", ["What is 2 + 2 ?", QUESTION, poem, long])]
    kept, _, _ = decontaminated(["Something else entirely.", text], sets)
    assert (text not in kept) == found


def test_all_messages_of_a_prompt_are_checked():
    row = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "47"}, *asked("Are you sure?")]
    rows, _, _ = prompts.decontaminated([row, asked("Hello there")], [prompts.question_set("s", [QUESTION])], 8, 0.8)
    assert rows == [asked("Hello there")]


def test_nothing_left_is_refused():
    with pytest.raises(BadInput, match=r"none of the 1 prompts is left: .* \(s\)"):
        decontaminated([QUESTION], [prompts.question_set("s", [QUESTION])])


def test_a_set_without_questions_at_hand_is_unchecked_and_never_clean(tmp_path):
    file = tmp_path / "gsm8k_test.jsonl"
    file.write_text(json.dumps({"question": QUESTION}) + "\n")
    sets = prompts.question_sets([str(file), "nobody/math500"], SUITE_SETS)
    _, _, report = decontaminated(["Hello there"], sets)
    assert [one["set"] for one in report["checked"]] == ["gsm8k_test.jsonl"]
    unchecked = {one["set"]: one["why"] for one in report["unchecked"]}
    assert set(unchecked) == {*SUITE_SETS, "nobody/math500"} - {"gsm8k"}
    assert "cannot be reached" in unchecked["nobody/math500"]
    assert "not checked against nobody/math500, aime24" in prompts.verdict(report)
    off = prompts.unchecked_report("prompts.decontaminate.enabled=false", SUITE_SETS)
    assert {one["set"] for one in off["unchecked"]} == set(SUITE_SETS)
    assert off["checked"] == []


def test_questions_are_found_in_files_folders_and_every_known_column(tmp_path):
    (tmp_path / "amc23.jsonl").write_text('{"id": 3, "problem": "one", "question": "one and a half", "answer": 1.5}\n')
    (tmp_path / "chat.json").write_text('[{"uid": "u1", "messages": [{"role": "user", "content": "two"}]}]')
    (tmp_path / "notes.txt").write_text("no questions")
    odd = tmp_path / "odd.csv"
    odd.write_text("q,a\nthree,x\n")
    with pytest.raises(BadInput, match=r"odd.csv, line 2 has no question \(found: q, a\); name its column"):
        prompts.question_sets([str(odd)], {})
    assert prompts.question_sets([DataSet(source=str(odd), column="q")], {})[0].questions[0].text == "three"
    places = [str(tmp_path), str(tmp_path / "chat.json"), DataSet(source=str(tmp_path / "notes.txt"))]
    sets = prompts.question_sets(places, SUITE_SETS, missing=False)
    assert [one.name for one in sets] == ["amc23.jsonl", "chat.json", "notes.txt"]
    found = [(q.set, q.id, q.text) for one in sets for q in one.questions]
    assert found[:3] == [
        ("amc23.jsonl", "3", "one"),
        ("amc23.jsonl", "3", "one and a half"),
        ("chat.json", "u1", "two"),
    ]
    assert found[3][2] == "no questions"
    with pytest.raises(BadInput, match=r"prompts\.decontaminate\.against='.*none.jsonl' is no file here"):
        prompts.question_sets([str(tmp_path / "none.jsonl")], {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty' has no file named after one of aime24, .*; name the files themselves"):
        prompts.question_sets([str(tmp_path / "empty")], SUITE_SETS)


def test_of_a_question_in_turns_the_first_is_checked_and_it_is_said(tmp_path):
    file = tmp_path / "mt_bench.jsonl"
    file.write_text(
        json.dumps({"question_id": 81, "turns": [QUESTION, "Tell me about the farm of your choice."]}) + "\n"
    )
    for place in (str(file), DataSet(source=str(file), column="turns")):
        sets = prompts.question_sets([place], {})
        kept, _, report = decontaminated([QUESTION, "Tell me about the farm of your choice."], sets)
        assert kept == ["Tell me about the farm of your choice."]
        assert report["checked"] == [{"set": "mt_bench.jsonl", "questions": 1, "hits": 1, "first_turns_only": 1}]
        assert "(of 1 the first turn alone)" in prompts.verdict(report)
    with pytest.raises(BadInput, match=r"line 1: 'question_id' holds no question, but int '81'; name another column"):
        prompts.question_sets([DataSet(source=str(file), column="question_id")], {})


def test_the_sets_are_the_tasks_of_the_suites_by_the_tasks_own_names(tmp_path):
    assert sorted(SUITE_SETS) == [
        "aime24", "aime25", "amc23", "chat", "gpqa_diamond", "gsm8k", "humaneval", "ifeval", "math500", "mbpp",
        "mmlu_pro",
    ]  # fmt: skip
    names = {"gpqa.jsonl": "gpqa_diamond", "HumanEval.jsonl": "humaneval", "arena_hard_v0.1_prompts.jsonl": "chat",
             "MATH-500_test.jsonl": "math500"}  # fmt: skip
    for name in (*names, "ultrachat.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": QUESTION}) + "\n")
    sets = prompts.question_sets([str(tmp_path)], SUITE_SETS)
    assert {one.name for one in sets if one.questions} == set(names)
    assert {one.name for one in sets if one.unchecked} == set(SUITE_SETS) - set(names.values())


def other_punctuation(text, rng):
    return "".join(rng.choice(";,.!-") if char in string.punctuation else char for char in text)


DISGUISES = {
    "verbatim": lambda text, rng: text,
    "re-cased": lambda text, rng: text.swapcase(),
    "other punctuation": other_punctuation,
    "second half": lambda text, rng: text[len(text) // 2 :],
    "wrapped": lambda text, rng: f"Please solve: {text}",
}


@pytest.fixture(scope="module")
def real(shared_data):
    rows, _ = prompts.load((Part(source=str(shared_data / "grlo_prompts_1000.jsonl")),), None, 0)
    return rows, prompts.question_sets([str(shared_data / name) for name in REAL_SETS], {})


def test_no_real_prompt_is_taken_for_a_benchmark_question(real):
    rows, sets = real
    kept, _, report = prompts.decontaminated(rows, sets, 8, 0.8)
    assert len(kept) == 1000
    counts = {one["set"]: one["questions"] for one in report["checked"]}
    assert counts == dict(zip(REAL_SETS, (1319, 500, 30, 40, 164, 500), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_of_200_planted_questions_99_in_100_are_found(real, seed):
    rows, sets = real
    rng = random.Random(seed)
    questions = rng.sample([question for one in sets for question in one.questions], 200)
    planted = [
        asked(disguise(question.text, rng))
        for question, disguise in zip(questions, list(DISGUISES.values()) * 40, strict=True)
    ]
    mixed = rows + planted
    rng.shuffle(mixed)
    kept, _, _ = prompts.decontaminated(mixed, sets, 8, 0.8)
    kept = {id(row) for row in kept}
    missed = [row for row in planted if id(row) in kept]
    assert len(missed) <= 2, missed
    assert sum(id(row) not in kept for row in rows) == 0
