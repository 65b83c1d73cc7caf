"""Exit rules with plain loops over lists: slow and obvious."""

from math import floor, inf, log

import numpy as np

from tests._reference.calibration import (
    slow_bars,
    slow_class_precision,
    slow_exits,
    slow_thresholds,
    top,
)

HAIR = 1e-6  # a threshold lies at most this far below the lowest score it admits


def dirichlet(n_stages=4, n=120, n_classes=3, seed=0, levels=None):
    """Probabilities that sharpen with depth, and codes that they often tell.

    With `levels` the probabilities are rounded to so many steps: ties.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    strength = np.linspace(1, 4, n_stages)[:, None, None]
    logits = strength * np.eye(n_classes)[y] + 1.5 * rng.standard_normal(
        (n_stages, n, n_classes)
    )
    proba = np.exp(logits)
    if levels:
        proba = np.ceil(levels * proba / proba.sum(axis=-1, keepdims=True))
    return proba / proba.sum(axis=-1, keepdims=True), y


def repeated(proba, y, weight):
    """Every sample as often as its whole weight says."""
    rows = np.repeat(np.arange(len(y)), np.asarray(weight, dtype=int))
    return proba[:, rows], y[rows]


def first_where(exits, n_stages):
    """Depth from one list of answers a branch: the first yes, or the last stage."""
    return [
        next((k for k, branch in enumerate(exits) if branch[i]), n_stages - 1)
        for i in range(len(exits[0]))
    ]


def cut(scores, admitted):
    """A threshold a hair below the admitted scores, at most half way to the next."""
    if not admitted:
        return inf
    lowest = min(admitted)
    below = max((s for s in scores if s < lowest), default=-inf)
    return lowest - min((lowest - below) / 2, HAIR)


def slow_quota(proba, decay):
    """One threshold a branch, on samples of weight 1."""
    n_stages, n = len(proba), len(proba[0])
    total = sum(decay**k for k in range(n_stages))
    alive, thresholds = list(range(n)), []
    for k in range(n_stages - 1):
        scores = {i: max(proba[k][i].tolist()) for i in alive}
        places = floor(decay**k / total * n + 1e-9)
        ranked = sorted(scores.values(), reverse=True)
        lowest = ranked[min(places, len(ranked)) - 1] if places and ranked else inf
        out = [i for i in alive if scores[i] >= lowest]
        thresholds.append(cut(scores.values(), [scores[i] for i in out]))
        alive = [i for i in alive if i not in out]
    return thresholds


def slow_regret(proba, y, weight, costs, price):
    """One threshold a branch: the best of all that there are, tried one by one."""
    right = [
        [int(row.argmax() == t) for row, t in zip(p, y, strict=True)] for p in proba
    ]
    alive, thresholds = [i for i in range(len(y)) if weight[i] > 0], []
    for k in range(len(proba) - 1):
        scores = {i: max(proba[k][i].tolist()) for i in alive}
        best, chosen = 0.0, []
        for level in sorted(set(scores.values()), reverse=True):
            out = [i for i in alive if scores[i] >= level]
            saved = 1 - costs[k] / costs[-1]
            gain = sum(
                weight[i] * (price * saved - (right[-1][i] - right[k][i])) for i in out
            )
            if gain > best + 1e-9:
                best, chosen = gain, out
        thresholds.append(cut(scores.values(), [scores[i] for i in chosen]))
        alive = [i for i in alive if i not in chosen]
    return thresholds


def slow_precision(
    proba, y, weight, margin, *, margin_mode, min_support, rule, survivors_only
):
    """Thresholds (n_branches, n_classes) of CalexNet's gate, and who exits where."""
    n_classes = proba.shape[2]
    predicted = top(proba[-1])[1]
    reference = slow_class_precision(y, predicted, n_classes, weight)
    bars = slow_bars(reference, margin, margin_mode)
    reaching, exits = [True] * len(y), []
    for stage in proba[:-1]:
        scores, predicted = top(stage)
        members = reaching if survivors_only else [True] * len(y)
        found = slow_thresholds(
            scores,
            predicted,
            y,
            weight,
            members,
            bars,
            min_support=min_support,
            rule=rule,
        )
        exits.append(slow_exits(scores, predicted, found))
        reaching = [r and not e for r, e in zip(reaching, exits[-1], strict=True)]
    return first_where(exits, len(proba))


def slow_stopping(proba, y, weight, costs, price, regularization):
    """Advantage of an exit over going on, shape (n_branches, n), from the definition.

    Backward over the branches; each regression by its normal equations, with the mean
    removed in place of an intercept.
    """
    proba, weight = np.asarray(proba), np.asarray(weight, dtype=float)

    def mean(values):
        return (weight * values).sum() / weight.sum()

    def worth(k):
        right = proba[k].argmax(axis=1) == y
        return right - price * costs[k] / costs[-1]

    value = worth(len(proba) - 1)
    advantages = []
    for k in reversed(range(len(proba) - 1)):
        falling = -np.sort(-proba[k], axis=1)
        entropy = np.array([-sum(p * log(p) for p in row if p > 0) for row in proba[k]])
        columns = []
        for signal in (falling[:, 0], entropy, falling[:, 0] - falling[:, 1]):
            centred = signal - mean(signal)
            columns.append(centred / np.sqrt(mean(centred**2)))
        z = np.array(columns)
        gain = worth(k) - value
        left = (weight * z) @ z.T + regularization * np.eye(3)
        slope = np.linalg.solve(left, (weight * z) @ (gain - mean(gain)))
        advantages.insert(0, mean(gain) + slope @ z)
        value = np.where(advantages[0] >= 0, worth(k), value)
    return np.array(advantages)
