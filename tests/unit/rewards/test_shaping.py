import numpy as np
import pytest

from grlo_lite.recipe.schema import Reward, Truncated
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.rewards.shaping import repeated_4grams, shaped_rewards


def reward(**changes):
    return Reward(name="main", **changes)


def shaped(raw, truncated=None, tokens=None, repeated=None, **changes):
    raw = np.array(raw, float)
    cut = np.zeros(len(raw), bool) if truncated is None else np.array(truncated)
    tokens = np.full(len(raw), 10) if tokens is None else np.array(tokens)
    repeated = np.zeros(len(raw)) if repeated is None else np.array(repeated)
    return shaped_rewards(raw, cut, tokens, repeated, reward(**changes), raw.min())


@pytest.mark.parametrize(
    ("truncated", "expected"),
    [
        (Truncated(mode="penalty", value=1), [2.0, -2.0, -1.0]),  # the lowest raw score is -1
        (Truncated(mode="floor", value=-9), [2.0, -9.0, -1.0]),
        (Truncated(mode="score", value=0.5), [2.0, 4.5, -1.0]),
    ],
)
def test_what_a_truncated_answer_earns(truncated, expected):
    rewards, parts = shaped_rewards(
        np.array([2.0, 5.0, -1.0]),
        np.array([False, True, False]),
        np.array([1, 2, 3]),
        np.zeros(3),
        reward(truncated=truncated),
        lowest=-1.0,
    )
    assert rewards.tolist() == expected
    assert parts["truncation"].tolist() == [0, expected[1] - 5, 0]
    assert set(parts) == {"truncation"}


def test_length_repetition_and_clip_by_hand_and_apart():
    rewards, parts = shaped(
        [1, 1, 9],
        tokens=[100, 3000, 1000],
        repeated=[0, 0.5, 0],
        length_penalty=2.0,
        length_free=1000,
        repetition_penalty=4.0,
        clip=5.0,
    )
    assert parts["length"].tolist() == [0, -4, 0]
    assert parts["repetition"].tolist() == [0, -2, 0]
    assert parts["clip"].tolist() == [0, 0, -4]
    assert rewards.tolist() == [1, -5, 5]


@pytest.mark.parametrize(
    ("ids", "share"), [([1, 2, 3], 0), ([1, 2, 3, 4, 5], 0), ([7] * 8, 1 - 1 / 5), ([1, 2, 3, 4] * 2, 1 / 5)]
)
def test_repeated_4grams_by_hand(ids, share):
    assert repeated_4grams(ids) == pytest.approx(share)


class Judge:
    """Scores the k-th conversation k times `slope`."""

    cut = 0

    def __init__(self, slope):
        self.slope = slope

    def score(self, asked):
        return [self.slope * (i + 1) for i in range(len(asked))]


def function(judges=None, **changes):
    return RewardFunction(judges or [("main", 1.0, Judge(1.0))], [2], reward(**changes), group_size=2, seed=3)


def said(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


ASKED = [{"role": "user", "content": "?"}]


def test_truncated_answers_are_told_from_finished_ones():
    made = function()
    batches = []
    rewards = handed_on(made, batches.append)([ASKED] * 2, said("a", "b"), [[5, 6, 2], [5, 6, 7]])
    [batch] = batches
    assert batch.truncated_B.tolist() == [False, True]
    assert batch.tokens_B.tolist() == [3, 3]
    assert rewards == batch.rewards_B.tolist() == [1.0, 0.0]  # the second: lowest raw score 1, less 1


def test_several_judges_are_weighted_and_kept_apart():
    made = function([("one", 1.0, Judge(1.0)), ("two", 0.5, Judge(-4.0))])
    batch = made.scored([ASKED] * 2, said("a", "b"), [[5, 2], [6, 2]], step=0)
    assert batch.rewards_B.tolist() == [1 - 2, 2 - 4]
    assert {name: scores.tolist() for name, scores in batch.judged.items()} == {"one": [1, 2], "two": [-4, -8]}
    assert made.score([ASKED]) == [-1]


def test_shuffling_permutes_the_rewards_anew_at_each_step_and_repeats_by_seed():
    class State:
        global_step = 0

    orders = []
    for State.global_step in (0, 1, 0):
        orders.append(
            handed_on(function(shuffle=True), lambda batch: None)(
                [ASKED] * 20, said(*map(str, range(20))), [[5, 2]] * 20, trainer_state=State
            )
        )
    assert sorted(orders[0]) == sorted(orders[1]) == [float(i + 1) for i in range(20)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
