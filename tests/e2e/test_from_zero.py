"""From a base that hardly ever ends an answer: the order among unfinished answers teaches it to."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_base_that_hardly_ever_ends_learns_to(train, tmp_path):
    train("microcosm-from-zero", "--run-dir", tmp_path / "r")
    metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 80
    assert sum(line["truncated_fraction"] for line in metrics[:5]) / 5 >= 0.98
    assert sum(1 - line["truncated_fraction"] for line in metrics[-5:]) / 5 >= 0.6
    average = json.loads((tmp_path / "r" / "evaluation.json").read_text())["average"]
    assert average["difference"] >= 0.2
