import numpy as np
import pytest
from scipy.stats import t as student

from grlo_lite.evaluation import paired_statistics


def test_student_on_paired_differences_by_hand():
    # d = 1, 2, 3: mean 2, sd 1, SE 1/√3; t(0.975, 2) = 4.302653; two-sided p of t = 2√3 with 2 df = 0.074180
    d = paired_statistics.paired_difference(np.array([1.0, 1, 1]), np.array([2.0, 3, 4]))
    assert (d.n, d.base, d.tuned, d.difference) == (3, 1.0, 3.0, 2.0)
    assert d.ci_low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert d.ci_high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert d.p_value == pytest.approx(0.074180, abs=1e-5)
    # t(0.975, 2) + t(0.8, 2) = 4.302653 + 1.060660
    assert d.smallest_detectable == pytest.approx(5.363313 / 3**0.5, abs=1e-5)


def test_mcnemar_for_right_and_wrong_by_hand():
    # 1 lost, 5 won: exact two-sided binomial p = 2 · (C(6,0) + C(6,1)) / 2⁶ = 14/64
    base = np.array([1, 0, 0, 0, 0, 0, 1, 1])
    tuned = np.array([0, 1, 1, 1, 1, 1, 1, 1])
    assert paired_statistics.paired_difference(base, tuned).p_value == pytest.approx(14 / 64)


def test_equal_arms_show_nothing():
    same = paired_statistics.paired_difference(np.array([0, 1, 1]), np.array([0, 1, 1]))
    assert (same.difference, same.p_value) == (0, 1)
    # no disagreement in 3: a share p of them goes unseen with (1 − p)³ ≥ 0.025, that is p ≤ 0.707598
    assert (same.ci_low, same.ci_high) == (pytest.approx(-0.707598, abs=1e-6), pytest.approx(0.707598, abs=1e-6))
    nothing = paired_statistics.paired_difference(np.zeros(100), np.zeros(100))
    assert nothing.smallest_detectable == pytest.approx(6 / 100)
    assert nothing.ci_high == pytest.approx(0.036217, abs=1e-6)
    assert paired_statistics.raw_win_rate(np.ones(100)).ci_low == pytest.approx(1 - 0.036217, abs=1e-6)


def test_the_average_over_tasks_by_hand():
    one = paired_statistics.PairedDifference(100, 0.3, 0.5, 0.2, 0.03, 0, 0, 0, 0)
    two = paired_statistics.PairedDifference(100, 0.5, 0.6, 0.1, 0.04, 0, 0, 0, 0)
    average = paired_statistics.mean_of_differences([one, two])
    assert average["difference"] == pytest.approx(0.15)
    assert (average["base"], average["tuned"]) == (pytest.approx(0.4), pytest.approx(0.55))
    # √(0.03² + 0.04²) / 2 = 0.025; (0.0025)² / ((0.03⁴ + 0.04⁴)/99) = 183.6 degrees of freedom: t(0.975) = 1.972979
    assert average["ci_high"] == pytest.approx(0.15 + 1.972979 * 0.025, abs=1e-6)
    assert average["p_value"] == pytest.approx(2 * student.sf(6, 183.6), rel=1e-2)


def test_the_interval_covers_what_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        base, tuned = rng.random(200) < 0.4, rng.random(200) < 0.4
        d = paired_statistics.paired_difference(base.astype(float), tuned.astype(float))
        covered += d.ci_low <= 0 <= d.ci_high
    assert 0.93 <= covered / 2000 <= 0.97


# name: questions, samples a question; the sizes of the grlo suite, and MMLU-Pro's and Arena's limits
SIZES = {
    "math500": (500, 1), "gsm8k": (1319, 1), "aime24": (30, 8), "aime25": (30, 8), "amc23": (40, 8),
    "gpqa": (198, 1), "mmlu_pro": (1000, 1), "humaneval": (164, 1), "mbpp": (500, 1), "ifeval": (541, 1),
}  # fmt: skip


def simulated_suite(rng, shift):
    """Both arms on every task: each question has a difficulty of its own, and `shift` is added to the tuned arm's."""
    differences = {}
    for name, (n, k) in SIZES.items():
        difficulty = rng.beta(1.0, 1.0, n)
        tuned = np.clip(difficulty + shift.get(name, 0.0), 0, 1)
        differences[name] = paired_statistics.paired_difference(
            rng.binomial(k, difficulty) / k, rng.binomial(k, tuned) / k
        )
    return differences


def test_2000_evaluations_without_a_true_difference():
    rng = np.random.default_rng(1)
    covered = dict.fromkeys([*SIZES, "average"], 0)
    false_alarms = 0
    for _ in range(2000):
        suite = simulated_suite(rng, {})
        for name, d in suite.items():
            covered[name] += d.ci_low <= 0 <= d.ci_high
        average = paired_statistics.mean_of_differences(list(suite.values()))
        covered["average"] += average["ci_low"] <= 0 <= average["ci_high"]
        false_alarms += min(paired_statistics.holm([d.p_value for d in suite.values()])) < 0.05
    for name, count in covered.items():
        assert 0.93 <= count / 2000 <= 0.97, name
    assert false_alarms / 2000 <= 0.06  # any of ten tasks called more than chance


@pytest.mark.parametrize("name", ["math500", "aime24", "amc23", "humaneval"])
def test_a_true_difference_of_the_printed_size_is_found_four_times_in_five(name):
    n, k = SIZES[name]
    rng = np.random.default_rng(2)
    difficulty = rng.beta(1.0, 1.0, (400, n)) * 0.6 + 0.05  # room for the tuned arm
    smallest = np.mean(
        [
            paired_statistics.paired_difference(rng.binomial(k, d) / k, rng.binomial(k, d) / k).smallest_detectable
            for d in difficulty
        ]
    )
    found, difficulty = 0, rng.beta(1.0, 1.0, (2000, n)) * 0.6 + 0.05
    for row in difficulty:
        d = paired_statistics.paired_difference(rng.binomial(k, row) / k, rng.binomial(k, row + smallest) / k)
        found += not d.ci_low <= 0 <= d.ci_high
    assert 0.75 <= found / 2000 <= 0.85


def test_holm_as_published():
    # Holm's own steps by hand: 0.01·4, 0.02·3 = 0.06, 0.03·2 = 0.06, 0.04·1 < 0.06 stays 0.06
    assert paired_statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert paired_statistics.holm([0.7, 0.6]) == [1.0, 1.0]


def test_sign_flips_by_hand():
    # d = 1, 2, 3: of the 8 sign patterns only +++ and --- have a mean as far from zero: p = 2/8
    assert paired_statistics.permutation_p_value(np.array([1.0, 2, 3]), seed=0) == pytest.approx(2 / 8)
    rng = np.random.default_rng(0)
    d = rng.normal(0.2, 1, 60)
    assert paired_statistics.permutation_p_value(d, seed=0) == pytest.approx(
        student.sf(abs(d.mean()) / (d.std(ddof=1) / 60**0.5), 59) * 2, abs=0.02
    )


def test_bca_leans_towards_the_long_tail():
    d = np.random.default_rng(0).exponential(1, 80)
    low, high = paired_statistics.bca_interval(d, seed=0)
    assert low < d.mean() < high
    assert high - d.mean() > d.mean() - low  # Efron: a percentile interval of a right-skewed sample lies further right
    assert paired_statistics.bca_interval(np.array([0.5, 0.5, 0.5]), seed=0) == (0.5, 0.5)


def test_the_raw_win_rate_by_hand():
    # 1, 1, 0, ½: mean 0.625, sd 0.478714, SE 0.239357, t(0.975, 3) = 3.182446
    assert paired_statistics.raw_win_rate(np.array([1, 1, 0, 0.5])) == paired_statistics.WinRate(0.625, 0.0, 1.0)
    rate = paired_statistics.raw_win_rate(np.array([1, 1, 0, 0.5] * 4))
    assert rate.ci_low == pytest.approx(0.625 - 2.131450 * 0.428174 / 4, abs=1e-4)


def test_the_length_controlled_rate_is_the_raw_rate_where_length_says_nothing():
    wins = np.array([1, 1, 1, 0] * 50)
    even = np.array([10, -10, 10, 10, -10, 10, -10, -10] * 25)  # not correlated with winning
    assert paired_statistics.length_controlled_win_rate(wins, np.zeros(200)).rate == pytest.approx(0.75, abs=1e-3)
    assert paired_statistics.length_controlled_win_rate(wins, even).rate == pytest.approx(0.75, abs=0.01)


def test_a_win_by_length_alone_is_a_half():
    longer = np.array([100, -100] * 200)
    rng = np.random.default_rng(0)
    wins = (rng.random(400) < np.where(longer > 0, 0.9, 0.1)).astype(float)
    mostly_longer = np.concatenate([np.arange(0, 400, 2), np.arange(1, 100, 2)])  # 200 longer answers, 50 shorter
    raw = paired_statistics.raw_win_rate(wins[mostly_longer])
    controlled = paired_statistics.length_controlled_win_rate(wins[mostly_longer], longer[mostly_longer])
    assert raw.ci_low > 0.6
    assert controlled.ci_low < 0.5 < controlled.ci_high


def test_perfect_separation_stays_finite():
    for wins, longer in ((np.ones(50), np.arange(50.0)), (np.arange(50) >= 25, np.arange(50) - 24.5)):
        rate = paired_statistics.length_controlled_win_rate(wins, longer)
        assert 0 <= rate.ci_low <= rate.rate <= rate.ci_high <= 1


def test_the_model_is_statsmodels_binomial_glm_with_hc1():
    statsmodels = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    longer = rng.normal(50, 200, 300)
    wins = (rng.random(300) < 1 / (1 + np.exp(-(0.4 + longer / 250)))).astype(float)
    design = np.stack([np.ones(300), np.tanh(longer / longer.std(ddof=1))], axis=1)
    fit = statsmodels.GLM(wins, design, family=statsmodels.families.Binomial()).fit(cov_type="HC1")
    ours = paired_statistics.length_controlled_win_rate(wins, longer, ridge=0.0)
    low, high = fit.conf_int()[0]
    assert [ours.rate, ours.ci_low, ours.ci_high] == pytest.approx(
        [1 / (1 + np.exp(-x)) for x in (fit.params[0], low, high)], abs=2e-3
    )
    assert paired_statistics.length_controlled_win_rate(wins, longer).rate == pytest.approx(ours.rate, abs=1e-3)
