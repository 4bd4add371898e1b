"""The grader of a reward is the grader of an evaluation; a prompt that it cannot grade is refused."""

import time

import numpy as np
import pytest

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks.code import HUMANEVAL
from grlo_lite.evaluation.tasks.mathematics import GSM8K, MATH500
from grlo_lite.evaluation.tasks.questions import rows_of
from grlo_lite.models.chat_template import Prompt
from grlo_lite.monitoring.metrics import batch_metrics
from grlo_lite.prompts import load
from grlo_lite.recipe.schema import Part, Reward
from grlo_lite.rewards import verifiable
from grlo_lite.rewards.reward_function import RewardFunction
from grlo_lite.rewards.sources import require_rewards, require_usable


def prompt(right=None, asked="Why?", **columns):
    return Prompt([{"role": "user", "content": asked}], columns, right, "x.jsonl, line 7")


def answered(row, text):
    return Prompt([*row, {"role": "assistant", "content": text}], row.columns, row.answer, row.where)


def scores(grader, *said, **more):
    return verifiable.scores(0, Reward(verifiable=grader, **more), [answered(row, text) for row, text in said])


SHAPES = (r"It is \boxed{%s}.", "So.\n#### %s", "The answer is %s.", "**%s**", "First 7, then %s", "$x = 3$, so $%s$")


@pytest.mark.parametrize(("task", "file", "count"), [(GSM8K, "gsm8k_test.jsonl", 700), (MATH500, "math500.jsonl", 300)])
def test_the_reward_is_evaluations_verdict(shared_data, task, file, count):
    """2,000 answers over the two sets: each question's and another one's, in six ways of stating one."""
    rows, _ = load((Part(source=str(shared_data / file)),), None, 0, columns=True)
    questions = task.questions(rows_of(shared_data / file))
    asked = [(i, j) for i in range(count) for j in (i, (i + 7) % count)]
    texts = [SHAPES[(i + j) % 6] % questions[j].reference for i, j in asked]
    given = scores("mathematics", *[(rows[i], text) for (i, _), text in zip(asked, texts, strict=True)])
    judged = [task.judged(questions[i], text).score for (i, _), text in zip(asked, texts, strict=True)]
    assert given.tolist() == judged
    assert len(judged) == 2 * count
    assert 0.3 < np.mean(judged) < 0.7  # neither all right nor all wrong


def test_each_of_evaluations_graders_by_hand():
    assert scores("mathematics", (prompt("1/2"), r"\boxed{\frac12}"), (prompt("3"), "It is $4$.")).tolist() == [1, 0]
    gsm8k = prompt("1018", answer="so 1018\n#### 1,018")
    assert scores("mathematics", (gsm8k, "She has 7 and then 1,018"), (gsm8k, "1018, no, 9")).tolist() == [1, 0]
    assert scores("choice", (prompt("C"), "The answer is (C)."), (prompt("B"), "Answer: C")).tolist() == [1, 0]
    two = prompt("B", options=["no", "yes"])
    assert scores("choice", (two, "Answer: C"), (two, "B.")).tolist() == [0, 1]
    exam = prompt("63", domain="arithmetic")
    assert scores("microcosm", (exam, "um answer: 63 like"), (exam, "Answer: 64.")).tolist() == [1, 0]


def test_the_first_grader_that_can_grades_and_the_others_do_not_apply():
    reward = Reward(verifiable=("choice", {"grader": "mathematics", "weight": 2.0}))
    made = RewardFunction([], [2], reward, group_size=2, seed=0)
    said = [answered(prompt("C"), "(C)\nC."), answered(prompt("7"), "$7$")]
    assert made.score(said) == [1, 2]
    batch = made.scored([c[:-1] for c in said], [c[-1:] for c in said], [[5, 2]] * 2, 0)
    assert np.isnan(batch.judged["choice"]).tolist() == [True, True]  # plain lists bring no answers


def test_one_domain_of_the_microcosm_is_graded_alone():
    reward = Reward(verifiable="microcosm-code")
    require_rewards(reward, [prompt("3", domain="code")])
    with pytest.raises(BadInput, match=r"x\.jsonl, line 7 \('Why\?'\) cannot be graded .*no question of code"):
        require_rewards(reward, [prompt("3", domain="code"), prompt("3", domain="spelling")])


@pytest.mark.parametrize(
    ("grader", "row", "told"),
    [
        ("mathematics", prompt(), "mathematics finds no right answer; name its column in prompts.answer"),
        ("choice", prompt("maybe"), "no letter from A to J"),
        ("code", prompt("x"), "no tests"),
        ("reasoning-gym", prompt("x"), "no metadata of reasoning-gym"),
    ],
)
def test_a_prompt_that_cannot_be_graded_is_refused(grader, row, told):
    with pytest.raises(BadInput, match=told):
        require_rewards(Reward(verifiable=grader), [row])


def test_code_is_run_with_leave_alone():
    with pytest.raises(BadInput, match="allow that, in the sandbox, with --allow-code-execution"):
        require_usable(Reward(verifiable="code"), code_allowed=False)
    require_usable(Reward(verifiable="code"), code_allowed=True)


BOMB = "```python\nimport os\ndef {0}(*a):\n    while True:\n        os.fork()\n```"
LOOP = "```python\ndef {0}(*a):\n    while True:\n        pass\n```"


def test_programs_of_a_step_run_side_by_side_and_hostile_ones_earn_nothing(shared_data):
    """32 completions, right, wrong, a fork bomb and an endless loop: as evaluation has them, and in seconds."""
    rows, _ = load((Part(source=str(shared_data / "HumanEval.jsonl.gz"), column="prompt"),), 8, 0, columns=True)
    tasks = HUMANEVAL.questions(rows_of(shared_data / "HumanEval.jsonl.gz")[:8])
    said, expected = [], []
    for row, task in zip(rows, tasks, strict=True):
        entry, right = task.data["entry_point"], task.data["prompt"] + task.reference
        hostile = (BOMB if len(said) == 8 else LOOP if len(said) == 16 else "nothing").format(entry)
        texts = (right, f"```python\n{right}\n```", f"def {entry}(*a):\n    return None\n", hostile)
        said += [(row, text) for text in texts]
        expected += [1, 1, 0, 0]
    began = time.monotonic()
    assert scores("code", *said).tolist() == expected
    assert time.monotonic() - began < 15  # benchmarks/code_reward.py times it; here the machine may be busy


def test_mbpp_rows_are_graded_too():
    row = prompt(asked="Add two numbers.", test_list=["assert add(1, 2) == 3"])
    assert scores(
        "code", (row, "def add(a, b):\n    return a + b"), (row, "def add(a, b):\n    return a")
    ).tolist() == [1, 0]


def test_each_part_of_the_score_is_logged_where_it_applies():
    """Two groups of two: mathematics grades the first two prompts, choice the other two; lengths 2, 4, 2, 2."""
    reward = Reward(verifiable=("choice", "mathematics"))
    made = RewardFunction([], [2], reward, group_size=2, seed=0)
    asked = [prompt("7"), prompt("7"), prompt("C"), prompt("C")]
    said = [[{"role": "assistant", "content": text}] for text in ("$8$", "$7$", "(C).", "Answer: C")]
    batch = made.scored(asked, said, [[5, 2], [5, 5, 5, 2], [5, 2], [5, 2]], 0)
    found = batch_metrics(batch)
    assert batch.rewards_B.tolist() == [0, 1, 1, 1]
    assert (found["score_mean/mathematics"], found["score_mean/choice"], found["score_mean"]) == (0.5, 1, 0.75)
    assert (found["equal_groups_fraction/mathematics"], found["equal_groups_fraction/choice"]) == (0, 1)
    assert found["reward_length_correlation/mathematics"] == pytest.approx(1)  # the longer one is right
    assert found["reward_length_correlation/choice"] is None
