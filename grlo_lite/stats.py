"""Paired statistics, pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


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
    difference is 2.8 standard errors: the sum of the normal quantiles for a two-sided 5 % and for 80 % power.
    """
    difference_N = np.asarray(tuned_N, float) - np.asarray(base_N, float)
    n = len(difference_N)
    mean, error = float(difference_N.mean()), float(difference_N.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    if np.isin(base_N, (0, 1)).all() and np.isin(tuned_N, (0, 1)).all():
        won, lost = int((difference_N > 0).sum()), int((difference_N < 0).sum())
        p_value = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return PairedDifference(
        n, float(np.mean(base_N)), float(np.mean(tuned_N)), mean, error, mean - half, mean + half, p_value, 2.8 * error
    )


def mean_of_differences(differences: list[PairedDifference]) -> dict[str, float]:
    """The mean over T tasks of their differences, with a 95 % normal interval: SE = √Σse²/T, the tasks being
    independent.
    """
    error = float(np.sqrt(sum(d.standard_error**2 for d in differences)) / len(differences))
    mean = float(np.mean([d.difference for d in differences]))
    return {
        "base": float(np.mean([d.base for d in differences])),
        "tuned": float(np.mean([d.tuned for d in differences])),
        "difference": mean,
        "ci_low": mean - 1.959964 * error,
        "ci_high": mean + 1.959964 * error,
    }
