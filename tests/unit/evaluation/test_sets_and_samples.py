"""Statistics of whole sets and of several samples a question: coverage by simulation, the rest by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from grlo_lite.evaluation import paired_statistics
from grlo_lite.evaluation.paired_statistics import majority, paired_bootstrap, pass_at


def perplexity(values: Sequence[tuple[float, int]]) -> float:
    """exp(−Σ log-probabilities / Σ words), as lm-eval weighs documents."""
    return math.exp(-sum(v for v, _ in values) / sum(n for _, n in values))


@pytest.mark.slow
def test_the_bootstrap_covers_a_difference_of_perplexities(monkeypatch):
    monkeypatch.setattr(paired_statistics, "BOOTSTRAP", 400)
    draw, covered = np.random.default_rng(0), 0
    for seed in range(1000):
        words = draw.integers(20, 80, size=100)
        rate = draw.normal(-3.0, 0.4, size=100)  # a document is as hard for both arms
        base = [(float(r * n), int(n)) for r, n in zip(rate, words, strict=True)]
        gains = draw.normal(0.1, 0.2, size=100)
        tuned = [(float((r + g) * n), int(n)) for r, g, n in zip(rate, gains, words, strict=True)]
        found = paired_bootstrap(base, tuned, perplexity, seed)
        assert found is not None
        covered += found.ci_low <= math.exp(2.9) - math.exp(3.0) <= found.ci_high
    assert 930 <= covered <= 970


def test_a_bootstrap_of_documents_that_gained_alike():
    base = [(-30.0, 10), (-20.0, 10), (-25.0, 10)]
    found = paired_bootstrap(base, base, perplexity, 0)
    assert found is not None
    assert (found.base, found.difference, found.ci_low, found.ci_high) == (math.exp(2.5), 0, 0, 0)
    assert found.p_value == 1


def test_a_metric_that_is_not_defined_on_a_resample_has_no_interval():
    assert paired_bootstrap([1.0, 0.0], [1.0, 1.0], lambda values: 1 / sum(values), 0) is None


@pytest.mark.parametrize(("k", "n", "c", "chance"), [(1, 4, 1, 0.25), (2, 4, 1, 0.5), (2, 4, 2, 5 / 6), (3, 4, 2, 1)])
def test_pass_at_k_by_counting_the_draws(k, n, c, chance):
    assert pass_at(k, n, c) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("answers", "scores", "worth"),
    [
        (["7", "7", "8"], [1, 1, 0], 1),
        (["7", "8", "8"], [1, 0, 0], 0),
        (["7", "8"], [1, 0], 0.5),  # a tie
        (["", "", "7"], [0, 0, 1], 1),  # nothing found votes for nobody
        (["", ""], [0, 0], 0),
    ],
)
def test_the_answer_of_most_samples(answers, scores, worth):
    assert majority(answers, scores) == worth
