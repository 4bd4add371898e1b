"""From a base that hardly ever ends an answer: the order among unfinished answers teaches it to, a penalty does not."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def learnt(train, tmp_path):
    def learnt(*words):
        """A run's truncated fractions, a step each, and the average accuracy it gained."""
        train("microcosm-from-zero", "--run-dir", tmp_path / "r", *words)
        metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
        assert len(metrics) == 80
        average = json.loads((tmp_path / "r" / "evaluation.json").read_text())["average"]
        return [line["truncated_fraction"] for line in metrics], average["difference"]

    return learnt


def test_a_base_that_hardly_ever_ends_learns_to(learnt):
    truncated, gain = learnt()
    assert sum(truncated[:5]) / 5 >= 0.98
    assert sum(truncated[-5:]) / 5 <= 0.4
    assert gain >= 0.2


def test_a_penalty_that_is_the_same_for_all_teaches_it_nothing(learnt):
    truncated, gain = learnt("reward.truncated.mode=penalty")
    assert sum(truncated[-5:]) / 5 >= 0.98
    assert abs(gain) <= 0.03
