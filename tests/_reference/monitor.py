"""A slow, obvious version of the change detection: row after row, bet after bet."""

import numpy as np


def slow_p_values(reference, scores, uniform):
    """Smoothed conformal p-values against all rows before."""
    before, found = list(reference), []
    for score, u in zip(scores, uniform, strict=True):
        less = sum(other < score for other in before)
        same = sum(other == score for other in before) + 1  # itself
        found.append((less + u * same) / (len(before) + 1))
        before.append(score)
    return np.array(found)


def slow_statistic(p_values):
    """Shiryaev-Roberts sums of every bet; p_values of shape (kinds, rows)."""

    def bets(p):
        for slope in (-1.8, -0.9, 0.9, 1.8):
            yield 1 + slope * (p - 0.5)
        for power in (0.3, 0.6):
            yield power * p ** (power - 1)
            yield power * (1 - p) ** (power - 1)

    kinds = len(p_values)
    sums = [[0.0] * 8 for _ in range(kinds)]
    statistic = []
    for row in p_values.T:
        for kind, p in enumerate(row):
            sums[kind] = [
                (r + 1) * bet for r, bet in zip(sums[kind], bets(p), strict=True)
            ]
        statistic.append(max(np.mean(s) for s in sums) / kinds)
    return np.array(statistic)
