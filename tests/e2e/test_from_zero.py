"""From a base that never ends an answer: in order, unfinished answers teach it to; all alike, they teach nothing."""

import json

import pytest

pytestmark = pytest.mark.slow


def ended(train, run, mode):
    """The share of answers that end over the last five steps, and the average accuracy's difference."""
    train("microcosm-from-zero", f"reward.truncated.mode={mode}", "--run-dir", run)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 80
    assert sum(line["truncated_fraction"] for line in metrics[:5]) / 5 >= 0.98
    shares = [1 - line["truncated_fraction"] for line in metrics[-5:]]
    return sum(shares) / 5, json.loads((run / "evaluation.json").read_text())["average"]


def test_in_order_they_teach_it_to_end(train, tmp_path):
    share, average = ended(train, tmp_path / "r", "ordered")
    assert share >= 0.6
    assert average["difference"] >= 0.2


def test_all_alike_they_teach_nothing(train, tmp_path):
    share, average = ended(train, tmp_path / "r", "penalty")
    assert share <= 0.02
    assert average["ci_low"] <= 0 <= average["ci_high"]
