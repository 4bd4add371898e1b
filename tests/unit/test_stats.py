import numpy as np
import pytest

from grlo_lite import stats


def test_student_on_paired_differences_by_hand():
    # d = 1, 2, 3: mean 2, sd 1, SE 1/√3; t(0.975, 2) = 4.302653; two-sided p of t = 2√3 with 2 df = 0.074180
    d = stats.paired_difference(np.array([1.0, 1, 1]), np.array([2.0, 3, 4]))
    assert (d.n, d.base, d.tuned, d.difference) == (3, 1.0, 3.0, 2.0)
    assert d.ci_low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert d.ci_high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert d.p_value == pytest.approx(0.074180, abs=1e-5)
    assert d.smallest_detectable == pytest.approx(2.8 / 3**0.5)


def test_mcnemar_for_right_and_wrong_by_hand():
    # 1 lost, 5 won: exact two-sided binomial p = 2 · (C(6,0) + C(6,1)) / 2⁶ = 14/64
    base = np.array([1, 0, 0, 0, 0, 0, 1, 1])
    tuned = np.array([0, 1, 1, 1, 1, 1, 1, 1])
    assert stats.paired_difference(base, tuned).p_value == pytest.approx(14 / 64)


def test_equal_arms_show_nothing():
    same = stats.paired_difference(np.array([0, 1, 1]), np.array([0, 1, 1]))
    assert (same.difference, same.ci_low, same.ci_high, same.p_value) == (0, 0, 0, 1)


def test_the_average_over_tasks_by_hand():
    one = stats.PairedDifference(100, 0.3, 0.5, 0.2, 0.03, 0, 0, 0, 0)
    two = stats.PairedDifference(100, 0.5, 0.6, 0.1, 0.04, 0, 0, 0, 0)
    average = stats.mean_of_differences([one, two])
    assert average["difference"] == pytest.approx(0.15)
    assert (average["base"], average["tuned"]) == (pytest.approx(0.4), pytest.approx(0.55))
    assert average["ci_high"] == pytest.approx(0.15 + 1.959964 * 0.05 / 2)  # √(0.03² + 0.04²) / 2


def test_the_interval_covers_what_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        base, tuned = rng.random(200) < 0.4, rng.random(200) < 0.4
        d = stats.paired_difference(base.astype(float), tuned.astype(float))
        covered += d.ci_low <= 0 <= d.ci_high
    assert 0.93 <= covered / 2000 <= 0.97
