"""Cascade order with plain loops and logistic regressions: slow and obvious."""

import math
from dataclasses import dataclass, field

import numpy as np
from sklearn.linear_model import LogisticRegression

from tests._reference.calibration import (
    slow_bars,
    slow_local_thresholds,
    slow_thresholds,
    top,
)

HAIR = 1e-6  # a threshold lies at most this far below the lowest score it admits


@dataclass
class SlowCascade:
    """What each branch was trained on and what came of it."""

    branches: list = field(default_factory=list)
    weights: list = field(default_factory=list)  # one dict a branch: row -> weight
    thresholds: list = field(default_factory=list)


def slow_cascade(
    blocks,
    y,
    pairs,
    *,
    n_classes,
    reference,
    kind="soft",
    margin=0.0,
    margin_mode="relative",
    bandwidth=0.1,
    mixture=1.0,
    min_support=1,
    rule="smallest",
    soft=None,
    targets=None,
    weight=None,
    inner_pairs=None,
    last_correct=None,
    shrinkage=200,
):
    """Branch k + 1 is trained on who survives branch k.

    `pairs` are (train, held) rows: one, or a partition for scores out of fold.
    `inner_pairs` split the training rows of a single pair (cross-fitting).
    """
    n = len(y)
    targets = y if targets is None else targets
    weight = [1.0] * n if weight is None else weight
    held = sorted(i for _, part in pairs for i in part)
    train = list(pairs[0][0]) if len(pairs) == 1 else held
    survival, reaching = [1.0] * n, set(held)

    def usable(w, rows):
        if len({targets[i] for i in rows if w[i] > 0}) >= 2:
            return w
        return {i: weight[i] for i in rows}

    out = SlowCascade()
    for block in blocks:
        total = sum(weight[i] for i in train)
        mass = sum(weight[i] * survival[i] for i in train) / total
        share = 1.0 if kind != "soft" else mixture
        w = {i: weight[i] * ((1 - share) + share * survival[i] / mass) for i in train}

        def fit(rows, block=block, w=w):
            w = usable(w, rows)
            use, labels, masses = [], [], []
            for i in rows:
                if w[i] == 0:
                    continue
                if soft is None:
                    use.append(i), labels.append(targets[i]), masses.append(w[i])
                    continue
                large = [c for c in range(n_classes) if soft[i][c] >= 0.01]
                together = sum(soft[i][c] for c in large)
                for c in large:
                    use.append(i), labels.append(c)
                    masses.append(w[i] * soft[i][c] / together)
            # To the optimum: where a solver stops early differs between CPUs.
            model = LogisticRegression(solver="newton-cholesky", tol=1e-8)
            rows = np.asarray(block[use], dtype=np.float64)
            return model.fit(rows, labels, sample_weight=masses)

        def answer(branch, rows, block=block):
            proba = np.zeros((len(rows), n_classes))
            proba[:, branch.classes_] = branch.predict_proba(block[rows])
            return dict(zip(rows, zip(*top(proba), strict=True), strict=True))

        said = {}
        if len(pairs) == 1:
            branch = fit(train)
            said |= answer(branch, held)
            for rows, others in inner_pairs or [(train, train)]:
                model = fit(rows) if inner_pairs else branch
                said |= answer(model, list(others))
        else:
            for rows, others in pairs:
                said |= answer(fit(rows), list(others))
            branch = fit(train)

        seen = [
            [said[i][0] for i in held],
            [said[i][1] for i in held],
            [y[i] for i in held],
        ]
        there = [[weight[i] for i in held], [i in reaching for i in held]]
        if margin_mode == "local":
            right = [last_correct[i] for i in held]
            found = slow_local_thresholds(
                *seen,
                right,
                *there,
                n_classes,
                margin,
                min_support=min_support,
                shrinkage=shrinkage,
            )
        else:
            found = slow_thresholds(
                *seen,
                *there,
                slow_bars(reference, margin, margin_mode),
                min_support=min_support,
                rule=rule,
            )
        tau = [f.lowest - min((f.lowest - f.next_below) / 2, HAIR) for f in found]
        tau = [t if f.enabled else math.inf for t, f in zip(tau, found, strict=True)]
        out.branches.append(branch)
        out.weights.append(usable(w, train))
        out.thresholds.append(tau)
        reaching = {i for i in reaching if said[i][0] < tau[said[i][1]]}
        if kind == "none":
            continue
        for i in said:
            score, c = said[i]
            if kind == "hard" or bandwidth == 0:
                exits = 1.0 if score >= tau[c] else 0.0
            elif tau[c] == math.inf:
                exits = 0.0
            else:
                exits = 1 / (1 + math.exp(-(score - tau[c]) / bandwidth))
            survival[i] *= 1 - exits
    return out
