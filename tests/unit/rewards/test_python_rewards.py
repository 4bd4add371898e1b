"""Reward functions of one's own: loaded by name, held to their signature, checked at each call."""

import time

import pytest
from trl.rewards import accuracy_reward, think_format_reward

from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Prompt
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import PythonReward, Reward
from grlo_lite.rewards.python_rewards import PythonSource
from grlo_lite.rewards.reward_function import RewardFunction

BREVITY = """
def brevity(prompts, completions, **columns):
    return [-len(completion[0]["content"]) for completion in completions]

def none_for_b(prompts, completions, **columns):
    return [None if c[0]["content"] == "b" else 2 for c in completions]

def raises(prompts, completions, **columns):
    raise KeyError("answer")

def nan(completions, **columns):
    return [float("nan")] * len(completions)

def short(completions, **columns):
    return [1.0]

def a_number(completions, **columns):
    return 1.0

def no_completions(prompts):
    return []

def by_place(completions, /, **columns):
    return []

async def later(completions, **columns):
    return []

def right(completions, answer):
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]

def ids(completions, completion_ids):
    return [float(len(i)) for i in completion_ids]

def asleep(completions, **columns):
    import time
    time.sleep(60)

def busy(completions, **columns):
    while True:
        try:
            len(completions)
        except Exception:
            pass
"""


class Judge:
    cut = 0

    def score(self, conversations):
        return [10.0 for _ in conversations]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(BREVITY)
    return path


def conversations(*answers, **columns):
    said = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}] for answer in answers]
    return [Prompt(c, columns, columns.get("answer"), "x.jsonl, line 3") for c in said] if columns else said


def scores(name, *answers, seconds=60.0, **columns):
    return PythonSource(name, seconds).scores(conversations(*answers, **columns)).tolist()


def test_a_function_of_a_file_is_added_to_the_judges_with_its_weight(file):
    reward = Reward(name="m", python=({"function": f"{file}:brevity", "weight": 0.5}, f"{file}:none_for_b"))
    made = RewardFunction([("m", 1.0, Judge())], [2], reward, group_size=2, seed=0)
    assert made.score(conversations("aaaa", "b")) == [10 - 2 + 2, 10 - 0.5]
    batch = made.scored(
        [c[:-1] for c in conversations("aaaa", "b")], [c[-1:] for c in conversations("aaaa", "b")], [[5, 2]] * 2, 0
    )
    assert batch.rewards_B.tolist() == [10, 9.5]
    assert batch.judged[f"{file}:brevity"].tolist() == [-4, -1]


def test_functions_alone_are_enough(file):
    made = RewardFunction([], [2], Reward(python=(f"{file}:brevity",)), group_size=2, seed=0)
    assert made.score(conversations("aaaa", "b")) == [-4, -1]


def test_trls_own_functions_work_unchanged():
    said = conversations("<think>\nso\n</think>\nyes", "yes")
    expected = think_format_reward([c[-1:] for c in said])
    assert PythonSource("trl.rewards:think_format_reward", 60).scores(said).tolist() == expected == [1.0, 0.0]
    boxed = (r"My answer is \boxed{\frac{1}{3}}", r"My answer is \boxed{\frac{1}{2}}")
    by_trl = accuracy_reward([[{"role": "assistant", "content": b}] for b in boxed], [r"\frac{1}{3}"] * 2)
    assert by_trl == [1.0, 0.0]
    assert scores("trl.rewards:accuracy_reward", *boxed, solution=r"\frac{1}{3}") == by_trl
    assert scores("trl.rewards:accuracy_reward", *boxed, answer=r"\frac{1}{3}") == by_trl  # GSM8K has no `solution`


def test_a_function_gets_the_bare_answer_and_only_what_it_takes(file):
    said = [Prompt(c, {"answer": "2 + 1 = 3\n#### 3", "level": 1}, "3", "x") for c in conversations("3", "4")]
    assert PythonSource(f"{file}:right", 60).scores(said).tolist() == [1, 0]


def test_what_only_training_has_leaves_the_held_out_prompts_out(file):
    source = PythonSource(f"{file}:ids", 60)
    assert source.scores(conversations("a", "b"), completion_ids=[[1], [1, 2]]).tolist() == [1, 2]
    assert all(score != score for score in source.scores(conversations("a", "b")))  # NaN


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("raises", r"raised KeyError: 'answer' at .*mine\.py:9, in the batch of the prompt 'Why\?'"),
        ("nan", r"gave nan for an answer to 'Why\?'; give a finite number or None"),
        ("short", "gave 1 values for 2 completions"),
        ("a_number", "gave 1.0 for 2 completions"),
    ],
)
def test_what_a_function_does_wrong_is_named(file, function, told):
    with pytest.raises(BadInput, match=told):
        scores(f"{file}:{function}", "a", "b")


@pytest.mark.parametrize(("function", "line"), [("asleep", "37"), ("busy", "4[0-4]")])
def test_a_function_that_blocks_is_ended_where_it_is(file, function, line):
    began = time.monotonic()
    with pytest.raises(BadInput, match=rf"still running after 0\.2 s, at .*mine\.py:{line}, .* 'Why\?'; mend it"):
        scores(f"{file}:{function}", "a", seconds=0.2)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("no_completions", r"takes no completions \(it has: prompts\); it is called as function\(prompts=…"),
        ("by_place", "takes 'completions' by its place alone"),
        ("later", "is async"),
    ],
)
def test_a_signature_that_is_not_trls_is_refused_before_anything_is_loaded(file, function, told):
    with pytest.raises(BadInput, match=told):
        PythonSource(f"{file}:{function}", 60)


def test_a_column_that_the_prompts_lack_is_named_with_its_place(file):
    rows = conversations("", question="?")
    with pytest.raises(BadInput, match=r"asks for 'answer', which x\.jsonl, line 3 does not have \(found: question\)"):
        PythonSource(f"{file}:right", 60).require_columns(rows)
    PythonSource(f"{file}:brevity", 60).require_columns(rows)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("mine", "names no function"),
        ("no.such.module:f", "cannot be loaded"),
        ("{file}:other", "has no function other; it has brevity, none_for_b"),
    ],
)
def test_a_function_that_is_not_there_is_refused(file, name, told):
    with pytest.raises(BadInput, match=told):
        PythonSource(name.format(file=file), 60)


@pytest.mark.parametrize(
    ("content", "told"),
    [("def f(:\n", r"bad\.py, line 1 is no Python"), ("\n1 / 0\n", r"ZeroDivisionError: .* at .*bad\.py:2")],
)
def test_a_file_that_cannot_be_run_is_refused(tmp_path, content, told):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(BadInput, match=told):
        PythonSource(f"{tmp_path}/bad.py:f", 60)


def test_one_name_on_the_command_line_is_enough():
    recipe = recipes.load("microcosm", ["reward.python=mine.py:brevity"])
    assert recipe.reward.python == (PythonReward(function="mine.py:brevity"),)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.name=null"], "reward names no source; give reward.name="),
        (["reward.verifiable=[microcosm, microcosm]"], "reward.verifiable names one twice"),
        (["reward.verifiable=arithmetics"], "reward.verifiable"),
    ],
)
def test_sources_that_cannot_be_are_refused(overrides, told):
    with pytest.raises(BadInput, match=told):
        recipes.load("microcosm", overrides)
