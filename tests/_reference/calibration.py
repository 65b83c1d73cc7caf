"""Class thresholds as METHODS define them, with plain loops: slow and obvious."""

from dataclasses import dataclass
from math import inf, isnan, nan


@dataclass
class SlowThreshold:
    """Outcome for one class of one branch."""

    enabled: bool = False
    lowest: float = inf  # confidence of the last sample let through
    next_below: float = -inf  # the best confidence that is not let through
    precision: float = nan
    support: float = 0.0


def slow_bars(reference, margin, margin_mode):
    bars = []
    for precision in reference:
        if isnan(precision):
            bars.append(1.0)
            continue
        if margin_mode == "relative":
            bar = (1 - margin) * precision
        else:
            bar = precision - margin
        bars.append(min(max(bar, 0.0), 1.0))
    return bars


def slow_class_precision(y, predicted, n_classes, weight):
    out = []
    for c in range(n_classes):
        total = sum(w for p, w in zip(predicted, weight, strict=True) if p == c)
        right = sum(
            w for t, p, w in zip(y, predicted, weight, strict=True) if p == c and t == c
        )
        out.append(right / total if total > 0 else nan)
    return out


def slow_thresholds(
    scores, predicted, labels, weight, survivors, bars, *, min_support, rule
):
    found = []
    for c, bar in enumerate(bars):
        members = [
            i
            for i in range(len(scores))
            if predicted[i] == c and survivors[i] and weight[i] > 0
        ]
        levels = sorted({scores[i] for i in members}, reverse=True)
        best = SlowThreshold()
        for position, level in enumerate(levels):
            prefix = [i for i in members if scores[i] >= level]
            support = sum(weight[i] for i in prefix)
            if support < min_support:
                continue
            right = sum(weight[i] for i in prefix if labels[i] == c)
            if right / support >= bar:
                below = levels[position + 1] if position + 1 < len(levels) else -inf
                best = SlowThreshold(True, level, below, right / support, support)
            elif rule == "first_violation":
                break
        found.append(best)
    return found


def slow_trend(scores, costs, weight):
    """Falling isotonic regression at each score, by the min-max formula."""
    levels = sorted(set(scores))
    total = [
        sum(w for s, w in zip(scores, weight, strict=True) if s == level)
        for level in levels
    ]
    cost = [
        sum(w * c for s, c, w in zip(scores, costs, weight, strict=True) if s == level)
        for level in levels
    ]

    def mean(a, b):
        return sum(cost[a : b + 1]) / sum(total[a : b + 1])

    n = len(levels)
    return {
        level: min(max(mean(a, b) for b in range(i, n)) for a in range(i + 1))
        for i, level in enumerate(levels)
    }


def slow_local_thresholds(
    scores,
    predicted,
    labels,
    last_correct,
    weight,
    survivors,
    n_classes,
    margin,
    *,
    min_support,
    shrinkage,
):
    rows = [i for i in range(len(scores)) if survivors[i] and weight[i] > 0]
    if not rows:
        return [SlowThreshold() for _ in range(n_classes)]
    cost = {i: int(last_correct[i]) - int(predicted[i] == labels[i]) for i in rows}
    trend = slow_trend(
        [scores[i] for i in rows], [cost[i] for i in rows], [weight[i] for i in rows]
    )
    found = []
    for c in range(n_classes):
        members = [i for i in rows if predicted[i] == c]
        apart = sum(weight[i] * (cost[i] - trend[scores[i]]) for i in members)
        own = sum(weight[i] for i in members) + shrinkage
        offset = apart / own if own > 0 else 0.0
        levels = sorted({scores[i] for i in members}, reverse=True)
        best = SlowThreshold()
        for position, level in enumerate(levels):
            prefix = [i for i in members if scores[i] >= level]
            support = sum(weight[i] for i in prefix)
            if support < min_support or trend[level] + offset > margin + 1e-9:
                continue
            right = sum(weight[i] for i in prefix if labels[i] == c)
            below = levels[position + 1] if position + 1 < len(levels) else -inf
            best = SlowThreshold(True, level, below, right / support, support)
        found.append(best)
    return found


def slow_exits(scores, predicted, found):
    """Who exits: everyone at or above the last confidence that was let through."""
    return [
        found[c].enabled and s >= found[c].lowest
        for s, c in zip(scores, predicted, strict=True)
    ]


def top(proba):
    """Confidence and predicted class of each row; the first class wins a tie."""
    rows = [[float(p) for p in row] for row in proba]
    return [max(row) for row in rows], [row.index(max(row)) for row in rows]
