"""Paired statistics, pure functions on arrays."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 9999


@dataclass(frozen=True)
class PairedDifference:
    """The mean of tuned minus base over n questions, its 95 % interval, p-value and what this n could have shown."""

    n: int
    base: float
    tuned: float
    difference: float
    standard_error: float
    ci_low: float
    ci_high: float
    p_value: float
    smallest_detectable: float  # at 80 % power, two-sided 5 %


def paired_difference(base_N: np.ndarray, tuned_N: np.ndarray) -> PairedDifference:
    """Compares two arms over the same n ≥ 2 questions; both arrays have shape (N,).

    The interval is Student's t on the paired differences (standard error sd(d, ddof=1)/√n). The p-value is McNemar's
    exact test where both arms are right or wrong (0 or 1), else the paired t-test's. The smallest detectable
    difference is the sum of Student's quantiles for a two-sided 5 % and for 80 % power in standard errors: 2.8 of them
    for hundreds of questions, 2.9 for 30; for right and wrong it is six questions at least, since five are not enough
    for McNemar's test even if all point the same way. Arms that agree on every question have a sd of 0, which is no
    knowledge: their interval is what zero disagreements in n leave possible.
    """
    difference_N = np.asarray(tuned_N, float) - np.asarray(base_N, float)
    n = len(difference_N)
    mean, error = float(difference_N.mean()), float(difference_N.std(ddof=1) / np.sqrt(n))
    significance, power = (float(stats.t.ppf(level, n - 1)) for level in (0.975, 0.8))
    fewest = 0.0
    if np.isin(base_N, (0, 1)).all() and np.isin(tuned_N, (0, 1)).all():
        error, fewest = error or _unseen(n) / significance, 6 / n
        won, lost = int((difference_N > 0).sum()), int((difference_N < 0).sum())
        p_value = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    half, smallest = significance * error, max((significance + power) * error, fewest)
    return PairedDifference(
        n, float(np.mean(base_N)), float(np.mean(tuned_N)), mean, error, mean - half, mean + half, p_value, smallest
    )


def _unseen(n: int) -> float:
    """The largest share of events that n draws without one leave possible, at 97.5 % (Clopper and Pearson)."""
    return 1 - 0.025 ** (1 / n)


def mean_of_differences(differences: list[PairedDifference]) -> dict[str, float]:
    """The mean over T tasks of their differences, the tasks being independent, with a 95 % interval and p-value.

    SE = √Σse²/T, on Student's t with Welch and Satterthwaite's degrees of freedom, (Σse²)² / Σ(se⁴/(n−1)): with a few
    small tasks the normal quantile would promise too much.
    """
    squares_T = np.array([d.standard_error**2 for d in differences])
    mean = float(np.mean([d.difference for d in differences]))
    error = float(np.sqrt(squares_T.sum()) / len(differences))
    spread = sum(square**2 / (d.n - 1) for square, d in zip(squares_T, differences, strict=True))
    freedom = float(squares_T.sum() ** 2 / spread) if error else 1.0
    half = float(stats.t.ppf(0.975, freedom)) * error
    return {
        "base": float(np.mean([d.base for d in differences])),
        "tuned": float(np.mean([d.tuned for d in differences])),
        "difference": mean,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "p_value": float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0),
    }


def weighted_error(differences: list[PairedDifference], weights: list[float]) -> float:
    """The standard error of a weighted mean of independent differences; the weights need not add up to 1."""
    squares = sum((d.standard_error * w) ** 2 for d, w in zip(differences, weights, strict=True))
    return float(np.sqrt(squares)) / sum(weights)


BOOTSTRAP = 1000  # resamples of documents for a metric of a whole set


SLOW = {"bleu": 200, "chrf": 200, "ter": 200}  # resamples where one takes a good part of a second


def paired_bootstrap(
    base: list[Any], tuned: list[Any], aggregate: Callable[[list[Any]], float], seed: int
) -> PairedDifference | None:
    """The difference of a metric that only exists for a whole set of n documents, such as a perplexity: `aggregate` of
    each arm's values, documents drawn with replacement and the same ones for both arms.

    The interval is the percentiles' (Efron 1979), the p-value twice the smaller share of resamples on either side of
    zero. None where a resample has no finite value.
    """
    n, generator = len(base), np.random.default_rng(seed)
    whole = float(aggregate(base)), float(aggregate(tuned))
    resamples = SLOW.get(getattr(aggregate, "__name__", ""), BOOTSTRAP)
    drawn_R = np.empty(resamples)
    for r in range(resamples):
        chosen = generator.integers(n, size=n)
        try:
            drawn_R[r] = aggregate([tuned[i] for i in chosen]) - aggregate([base[i] for i in chosen])
        except (ArithmeticError, ValueError):  # such as a correlation of documents that are all alike
            return None
    if not np.isfinite(drawn_R).all():
        return None
    difference, error = whole[1] - whole[0], float(drawn_R.std(ddof=1))
    low, high = (float(v) for v in np.percentile(drawn_R, (2.5, 97.5)))
    beyond = min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return PairedDifference(n, *whole, difference, error, low, high, p_value, 2.8 * error)


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of `k` of a question's samples is right, of which `right` are: 1 − C(n − c, k) / C(n, k)
    (Chen and others 2021), unbiased. 0 < k ≤ samples.
    """
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: list[str], scores: list[float]) -> float:
    """What the answer that most samples gave is worth; the mean over those that tie, and nothing where none was found
    (an empty answer votes for nobody). The score of an answer is that of its samples.
    """
    by_answer: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer:
            by_answer.setdefault(answer, []).append(score)
    most = max(map(len, by_answer.values()), default=0)
    return float(np.mean([np.mean(found) for found in by_answer.values() if len(found) == most])) if most else 0.0


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order: below 0.05, a difference is more than chance even
    though several tasks were looked at (Holm 1979).
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def permutation_p_value(difference_N: np.ndarray, seed: int) -> float:
    """The two-sided sign-flipping test of paired differences, shape (N,): exact where 2^N is at most RESAMPLES."""
    result = stats.permutation_test(
        (np.asarray(difference_N, float), np.zeros(len(difference_N))),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=1000,
        rng=seed,
    )
    return float(result.pvalue)


def bca_interval(difference_N: np.ndarray, seed: int) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap 95 % interval of the mean (Efron 1987), shape (N,)."""
    difference_N = np.asarray(difference_N, float)
    if (difference_N == difference_N[0]).all():
        return float(difference_N[0]), float(difference_N[0])
    drawn = stats.bootstrap((difference_N,), np.mean, n_resamples=RESAMPLES, batch=1000, method="BCa", rng=seed)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


@dataclass(frozen=True)
class WinRate:
    """A share of wins between 0 and 1 with its 95 % interval."""

    rate: float
    ci_low: float
    ci_high: float


def raw_win_rate(wins_N: np.ndarray) -> WinRate:
    """The mean of wins (1), ties (½) and losses (0), shape (N,), N ≥ 2; Student's t interval, kept within 0 and 1,
    and what none in N leaves possible where all ended alike.
    """
    wins_N = np.asarray(wins_N, float)
    half = float(stats.t.ppf(0.975, len(wins_N) - 1) * wins_N.std(ddof=1) / np.sqrt(len(wins_N)))
    rate = float(wins_N.mean())
    half = half or _unseen(len(wins_N))
    return WinRate(rate, max(0.0, rate - half), min(1.0, rate + half))


def length_controlled_win_rate(wins_N: np.ndarray, more_characters_N: np.ndarray, ridge: float = 0.01) -> WinRate:
    """The win rate that a binomial model win ~ 1 + tanh(Δ/sd(Δ)) gives to answers of equal length; both shapes (N,).

    Δ is how many characters longer the tuned answer is. The rate is σ(intercept), its interval that of the intercept
    with HC1 errors. A ridge on both coefficients, far below what data weigh, keeps them finite where length or arm
    separates wins from losses perfectly. This is in the manner of AlpacaEval's length-controlled win rate, and not
    that number: no item term, another judge.
    """
    wins_N, more_N = np.asarray(wins_N, float), np.asarray(more_characters_N, float)
    spread = more_N.std(ddof=1)
    columns = [np.ones(len(wins_N))] + ([np.tanh(more_N / spread)] if spread > 0 else [])
    design_NK = np.stack(columns, axis=1)
    n, k = design_NK.shape
    coefficients_K, step_K = np.zeros(k), np.ones(k)
    rates_N, curvature_KK = np.full(n, 0.5), np.eye(k)
    while np.abs(step_K).max() > 1e-8:  # Newton's method; steps of at most 1 keep it from overshooting
        rates_N = 1 / (1 + np.exp(-design_NK @ coefficients_K))
        curvature_KK = (design_NK.T * (rates_N * (1 - rates_N))) @ design_NK + ridge * np.eye(k)
        step_K = np.linalg.solve(curvature_KK, design_NK.T @ (wins_N - rates_N) - ridge * coefficients_K)
        coefficients_K = coefficients_K + step_K.clip(-1, 1)
    residual_NK = design_NK * (wins_N - rates_N)[:, None]
    bread_KK = np.linalg.inv(curvature_KK)
    covariance_KK = bread_KK @ (residual_NK.T @ residual_NK) @ bread_KK * n / max(n - k, 1)
    half = 1.959964 * float(np.sqrt(covariance_KK[0, 0]))
    low, rate, high = (float(1 / (1 + np.exp(-(coefficients_K[0] + shift)))) for shift in (-half, 0, half))
    return WinRate(rate, low, high)
