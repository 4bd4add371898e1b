"""Reward functions of one's own: loaded by name, checked at each call."""

import pytest
from trl.rewards import think_format_reward

from grlo_lite.errors import BadInput
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import PythonReward, Reward
from grlo_lite.rewards.python_rewards import PythonRewards
from grlo_lite.rewards.reward_function import RewardFunction

BREVITY = """
def brevity(prompts, completions, **more):
    return [-len(completion[0]["content"]) for completion in completions]

def none_for_b(prompts, completions, **more):
    return [None if c[0]["content"] == "b" else 2 for c in completions]

def raises(prompts, completions, **more):
    raise KeyError("answer")

def nan(completions, **more):
    return [float("nan")] * len(completions)

def short(completions, **more):
    return [1.0]

def strange(prompts):
    return []
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


def conversations(*answers):
    return [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}] for answer in answers]


def test_a_function_of_a_file_is_added_to_the_judges_with_its_weight(file):
    reward = Reward(name="m", python=({"function": f"{file}:brevity", "weight": 0.5}, f"{file}:none_for_b"))
    made = RewardFunction([("m", 1.0, Judge())], [2], reward, group_size=2, seed=0)
    assert made.score(conversations("aaaa", "b")) == [10 - 2 + 2, 10 - 0.5]
    batch = made.scored(
        [c[:-1] for c in conversations("aaaa", "b")], [c[-1:] for c in conversations("aaaa", "b")], [[5, 2]] * 2, 0
    )
    assert batch.rewards_B.tolist() == [10, 9.5]
    assert batch.judged[f"{file}:brevity"].tolist() == [-4, -1]


def test_trls_own_functions_work_unchanged():
    made = PythonRewards((PythonReward(function="trl.rewards:think_format_reward"),))
    said = conversations("<think>\nso\n</think>\nyes", "yes")
    expected = think_format_reward([c[-1:] for c in said])
    assert made.scores(said)["trl.rewards:think_format_reward"].tolist() == expected == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("raises", r"raised KeyError: 'answer' at .*mine\.py:9, in the batch of the prompt 'Why\?'"),
        ("nan", r"gave nan for an answer to 'Why\?'; give a finite number or None"),
        ("short", "gave 1 values for 2 completions"),
        ("strange", "raised TypeError.*it is called as"),
    ],
)
def test_what_a_function_does_wrong_is_named(file, function, told):
    with pytest.raises(BadInput, match=told):
        PythonRewards((PythonReward(function=f"{file}:{function}"),)).scores(conversations("a", "b"))


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
        PythonRewards((PythonReward(function=name.format(file=file)),))


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(BadInput, match=r"bad\.py, line 1 is no Python"):
        PythonRewards((PythonReward(function=f"{tmp_path}/bad.py:f"),))


def test_one_name_on_the_command_line_is_enough():
    recipe = recipes.load("microcosm", ["reward.python=mine.py:brevity"])
    assert recipe.reward.python == (PythonReward(function="mine.py:brevity"),)
