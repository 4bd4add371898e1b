from types import SimpleNamespace

import numpy as np
import pytest

from grlo_lite.errors import BadInput
from grlo_lite.monitoring.metrics import batch_metrics
from grlo_lite.recipe.schema import Reward, Truncated
from grlo_lite.rewards.reward_function import RewardFunction
from grlo_lite.rewards.shaping import repeated_4grams, shaped_rewards


def reward(**changes):
    return Reward(name="main", **changes)


def shaped(raw, cut=None, tokens=None, repeated=None, **changes):
    raw = np.array(raw, float)
    cut = np.zeros(len(raw), bool) if cut is None else np.array(cut)
    tokens = np.full(len(raw), 10) if tokens is None else np.array(tokens)
    repeated = np.zeros(len(raw)) if repeated is None else np.array(repeated)
    return shaped_rewards(raw, cut, tokens, repeated, reward(**changes), lambda mine: [mine])


@pytest.mark.parametrize(
    ("truncated", "expected"),
    [
        (Truncated(mode="penalty", value=1), [2.0, -2.0, -1.0]),  # the lowest raw score is -1
        (Truncated(mode="floor", value=-9), [2.0, -9.0, -1.0]),
        (Truncated(mode="score", value=0.5), [2.0, 4.5, -1.0]),
        (Truncated(mode="mask"), [2.0, 5.0, -1.0]),
        (Truncated(), [2.0, -2.0, -1.0]),
    ],
)
def test_what_a_truncated_answer_earns(truncated, expected):
    rewards, parts = shaped([2, 5, -1], [False, True, False], truncated=truncated)
    assert rewards.tolist() == expected
    assert parts["truncation"].tolist() == [0, expected[1] - 5, 0]
    assert set(parts) == {"truncation"}


@pytest.mark.parametrize(
    ("raw", "finished", "value", "expected"),
    [
        # the best truncated one, 5, goes to half below the lowest finished one, -1: all truncated ones less 6.5
        ([2, 5, -1, 3.25], {0, 2}, 0.5, [2, -1.5, -1, -3.25]),
        # none finished: raw scores less value, whose spread is 7 as before
        ([2, 5, -1, -2], set(), 0.5, [1.5, 4.5, -1.5, -2.5]),
        # all finished
        ([2, 5, -1, -2], {0, 1, 2, 3}, 0.5, [2, 5, -1, -2]),
        # the judge put them lower still: never up
        ([2, -8, -1, -9], {0, 2}, 0.5, [2, -8, -1, -9]),
        # in between: the best lies 0.25 below already, and is moved by what it lacks
        ([2, -1.25, -1, -9], {0, 2}, 0.5, [2, -1.5, -1, -9.25]),
    ],
)
def test_truncated_answers_keep_their_order_below_the_finished_ones(raw, finished, value, expected):
    cut = [i not in finished for i in range(4)]
    rewards, parts = shaped(raw, cut, truncated=Truncated(mode="ordered", value=value))
    assert rewards.tolist() == expected
    assert (parts["truncation"] + raw).tolist() == expected


def test_the_order_is_kept_behind_the_other_penalties():
    """A finished answer that repeats itself, at 1 - 4, still earns more than a truncated one, at 3 - 0.5."""
    rewards, parts = shaped([1, 3], [False, True], repeated=[1, 0.125], repetition_penalty=4.0)
    assert parts["repetition"].tolist() == [-4, -0.5]
    assert parts["truncation"].tolist() == [0, -6.5]
    assert rewards.tolist() == [-3, -4]


@pytest.mark.parametrize("mode", ["ordered", "penalty"])
def test_the_whole_batch_counts_not_one_processs_part(mode):
    """The other process has a finished one at -3, and a truncated one at 9, which is the best of them."""
    others = {"ordered": iter([9.0, -3.0]), "penalty": iter([-3.0])}[mode]
    raw, cut = np.array([2.0, 5.0, 1.0]), np.array([False, True, True])
    rewards, _ = shaped_rewards(
        raw, cut, np.ones(3), np.zeros(3), reward(truncated=Truncated(mode=mode)), lambda mine: [mine, next(others)]
    )
    assert rewards.tolist() == {"ordered": [2, 5 - 13, 1 - 13], "penalty": [2, -4, -4]}[mode]


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
    rewards = made([ASKED] * 2, said("a", "b"), [[5, 6, 2], [5, 6, 7]])
    assert made.last.truncated_B.tolist() == [False, True]
    assert made.last.tokens_B.tolist() == [3, 3]
    assert rewards == made.last.rewards_B.tolist() == [1.0, 0.0]  # the second: the lowest finished one's 1, less 1


def test_masked_answers_are_left_out_but_for_the_record():
    made = function(truncated=Truncated(mode="mask"))
    assert made([ASKED] * 4, said(*"abcd"), [[5, 2], [5, 7], [6, 7], [6, 2]]) == [1.0, None, None, 4.0]
    assert made.last.rewards_B.tolist() == [1, 2, 3, 4]
    metrics = batch_metrics(made.last)
    assert (metrics["reward_mean"], metrics["reward_std"], metrics["score_mean"]) == (2.5, 1.5, 2.5)
    assert metrics["equal_groups_fraction"] == 1  # one finished answer a group has nothing to be compared with


def test_a_first_step_that_is_masked_whole_is_bad_input():
    made = function(truncated=Truncated(mode="mask"))
    with pytest.raises(BadInput, match=r"hit rollout.max_tokens, so nothing is left .*mode=ordered, or raise"):
        made([ASKED] * 2, said("a", "b"), [[5, 7], [6, 7]], trainer_state=SimpleNamespace(global_step=0))
    assert made([ASKED] * 2, said("a", "b"), [[5, 7], [6, 7]], trainer_state=SimpleNamespace(global_step=1)) == [
        None,
        None,
    ]
    assert batch_metrics(made.last)["reward_mean"] == 1.5


def test_shuffling_leaves_the_masked_ones_where_they_are():
    made = function(truncated=Truncated(mode="mask"), shuffle=True)
    rewards = made(
        [ASKED] * 20, said(*map(str, range(20))), [[5, 2], [5, 7]] * 10, trainer_state=SimpleNamespace(global_step=0)
    )
    assert rewards[1::2] == [None] * 10
    assert sorted(rewards[::2]) == [float(i + 1) for i in range(0, 20, 2)] != rewards[::2]


def test_several_judges_are_weighted_and_kept_apart():
    made = function([("one", 1.0, Judge(1.0)), ("two", 0.5, Judge(-4.0))])
    rewards = made([ASKED] * 2, said("a", "b"), [[5, 2], [6, 2]])
    assert rewards == [1 - 2, 2 - 4]
    assert {name: scores.tolist() for name, scores in made.last.judged.items()} == {"one": [1, 2], "two": [-4, -8]}
    assert made.score([ASKED]) == [-1]


def test_shuffling_permutes_the_rewards_anew_at_each_step_and_repeats_by_seed():
    class State:
        global_step = 0

    orders = []
    for State.global_step in (0, 1, 0):
        orders.append(
            function(shuffle=True)([ASKED] * 20, said(*map(str, range(20))), [[5, 2]] * 20, trainer_state=State)
        )
    assert sorted(orders[0]) == sorted(orders[1]) == [float(i + 1) for i in range(20)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
