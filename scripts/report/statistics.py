"""What do the numbers of runs say, and what does chance?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scripts.report.read import Curves

RESAMPLES = 9999
FEWEST_PAIRS = 6  # with fewer, the two-sided Wilcoxon test cannot give p < 0.05, whatever the differences


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same cases.

    Attributes:
        cases: that both have, with the measure defined.
        difference: mean of the first's minus the second's; NaN without cases.
        low, high: 95 % bootstrap interval of that mean; NaN with fewer than two cases.
        p_value: of the two-sided Wilcoxon signed-rank test; NaN with fewer than `FEWEST_PAIRS` cases.
        above: cases in which the first's value is above the second's.
    """

    cases: int
    difference: float
    low: float
    high: float
    p_value: float
    above: int

    @property
    def decided(self) -> bool:
        """Whether these cases tell the two apart: the interval does not hold 0, and p is below 0.05."""
        return self.low * self.high > 0 and self.p_value < 0.05


def last_third_mean(curves: Curves, metric: str) -> float:
    """Return the mean over the last third of the epochs, as the paper's over 400 to 600 of 600; NaN if undefined."""
    if not curves:
        return math.nan
    epochs = curves["epoch"]
    values = curves[metric][epochs > epochs.max() * 2 / 3]
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """Compare two measurements, case → value, on the cases in which both are defined."""
    differences = np.array([first[case] - second[case] for case in first if case in second])
    differences = differences[~np.isnan(differences)]
    low = high = p_value = math.nan
    if differences.size > 1:
        interval = stats.bootstrap(
            (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    if differences.size >= FEWEST_PAIRS:
        p_value = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    mean = float(differences.mean()) if differences.size else math.nan
    return Comparison(int(differences.size), mean, low, high, p_value, int((differences > 0).sum()))


def defined(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values that are not NaN."""
    return {case: value for case, value in values.items() if not math.isnan(value)}
