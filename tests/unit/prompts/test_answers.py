"""Prompts keep their right answers, from the row to the reward."""

import json
import sys

import pytest

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Prompt, beside
from grlo_lite.prompts import prepared
from grlo_lite.prompts.row_formats import answer_of
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Part


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "?", "answer": "so 1018\n#### 1,018"}, "1018"),
        ({"prompt": "?", "reward_model": {"style": "rule", "ground_truth": "34"}, "answer": "other"}, "34"),
        ({"prompt": "?", "reward_model": {"style": "model", "ground_truth": ""}}, None),
        ({"problem": "?", "answer": r"\left( 3, \frac{\pi}{2} \right)"}, r"\left( 3, \frac{\pi}{2} \right)"),
        ({"problem": "?", "solution": r"Thus \boxed{7}, or \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"problem": "?", "answer": 27.0}, "27.0"),
        ({"prompt": "?", "answer": "  "}, None),
        ({"prompt": "?", "answer": ["a", "b"]}, None),
        ("a bare text", None),
    ],
)
def test_the_right_answer_of_each_shape_of_row(row, answer):
    assert answer_of(row, None, "here") == answer


def test_the_recipe_may_name_the_column():
    row = {"question": "?", "answer": "long", "final": "5"}
    assert answer_of(row, "final", "here") == "5"
    with pytest.raises(BadInput, match=r"here has no key 'label' \(found: question, answer, final\)"):
        answer_of(row, "label", "here")


def of(text, answer):
    return Prompt([{"role": "user", "content": text}], {"answer": answer}, answer, f"row {answer}")


def test_answers_survive_cleaning_and_stay_with_their_own_prompt():
    rows = [of("a", "1"), of("  ", "2"), of("a", "3"), of("cafe\u0301", "4"), of("x" * 30 + "end", "5")]
    left, _ = prompts.cleaned(rows, lambda row: len(row[-1]["content"]), 10, "truncate", None, None)
    assert [(row[-1]["content"], row.answer) for row in left] == [("a", "1"), ("café", "4"), ("xxxxxxxend", "5")]
    assert [row.where for row in left] == ["row 1", "row 4", "row 5"]
    questions = [prompts.question_set("exam", ["café and what else is served there"])]
    kept, *_ = prompts.decontaminated(left, questions, 8, 0.8)
    train, held = prompts.split(kept * 1, 0, 0)
    assert held == []
    assert {row[-1]["content"]: beside(row)["answer"] for row in train}.items() >= {"a": "1"}.items()


def test_another_answer_is_another_prompt_set():
    assert prompts.prompt_hash([of("a", "1")]) != prompts.prompt_hash([of("a", "2")])
    assert prompts.prompt_hash([list(of("a", "1"))]) == prompts.prompt_hash([[{"role": "user", "content": "a"}]])


def test_written_prompts_are_read_back_with_their_answers(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "2 + 1\n#### 3", "level": 4}) + "\n")
    rows, _ = prompts.load((Part(source=str(path)),), None, 0, columns=True)
    prompts.write(tmp_path / "out.jsonl", rows)
    [again] = prompts.load((Part(source=str(tmp_path / "out.jsonl")),), None, 0, columns=True)[0]
    assert (again, again.answer, again.columns["level"]) == (rows[0], "3", 4)


def test_a_request_stands_behind_every_prompt_and_counts(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me about {w}.", "answer": w}) + "\n" for w in ("tea", "salt")))
    words = [f"prompts.source={path}", "prompts.request=Put it in a box.", "reward.python=x.py:f"]
    rows = prepared.prompt_rows(recipes.load("microcosm", words)).train
    assert {row[-1]["content"]: row.answer for row in rows} == {
        "Tell me about tea.\n\nPut it in a box.": "tea", "Tell me about salt.\n\nPut it in a box.": "salt",
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"none of the 2 prompts fits into prompts\.max_tokens=16"):
        prepared.prompt_rows(recipes.load("microcosm", [*words, "prompts.max_tokens=16"]))


def test_without_a_reward_that_asks_no_columns_are_kept():
    [row] = prompts.load((Part(source="microcosm-code"),), 1, 0)[0]
    assert type(row) is list


def test_reasoning_gym_makes_questions_without_end_and_checks_answers():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    from grlo_lite.rewards import verifiable

    part = (Part(source="reasoning-gym:basic_arithmetic"),)
    with pytest.raises(BadInput, match=r"never ends; say how many by prompts\.limit"):
        prompts.load(part, None, 0, columns=True)
    rows, _ = prompts.load(part, 3, 0, columns=True)
    assert rows == prompts.load(part, 5, 0, columns=True)[0][:3]
    for row in rows:
        assert isinstance(row, Prompt)
        assert verifiable.reasoning_gym_score(row, rf"It is \boxed{{{row.answer}}}") == 1
        assert verifiable.reasoning_gym_score(row, f"<answer>{row.answer}</answer>") == 1
        assert verifiable.reasoning_gym_score(row, f"{row.answer}1") < 1
    counted = (Part(source="reasoning-gym:basic_arithmetic", count=2), Part(source="microcosm-code", count=1))
    assert len(prompts.load(counted, None, 0, columns=True)[0]) == 3
    with pytest.raises(BadInput, match=r"there is no such task; near it are .*basic_arithmetic"):
        prompts.load((Part(source="reasoning-gym:basic_arithmetics"),), 3, 0)


def test_reasoning_gym_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(BadInput, match=r"pip install 'grlo-lite\[reasoning-gym\]'"):
        prompts.load((Part(source="reasoning-gym:chain_sum"),), 3, 0)
