"""Small fitted cascades for the reports and the pictures, fitted once."""

from functools import cache
from types import SimpleNamespace

import numpy as np
from sklearn.model_selection import PredefinedSplit

from sk_calex import CascadeClassifier
from sk_calex.baselines import NoAlignmentClassifier, SDNClassifier
from tests._cascade_models import (
    composed,
    converged_regression,
    images,
    tiny_backbone,
)

NAMES = np.array(["ant", "bee", "cat"])
HELD = np.where(np.arange(360) % 3 == 0, 0, -1)  # every third row calibrates
TRAIN = np.flatnonzero(HELD < 0)


@cache
def data():
    """Features and labels: all that a fit is given, and others."""
    X, y = images(360)
    test, test_y = images(240, seed=1)
    backbone = tiny_backbone(classes=NAMES).fit(X)
    return SimpleNamespace(
        backbone=backbone,
        X=backbone.transform(X),
        y=NAMES[y],
        test=backbone.transform(test),
        test_y=NAMES[test_y],
    )


def fit(kind=CascadeClassifier, **params):
    """Fit a cascade of a kind, on the fixed split."""
    given = data()
    if kind is CascadeClassifier:
        params = composed(**params)
    if kind is SDNClassifier:
        params = {"solver": "lbfgs", "max_iter": 8} | params
    else:
        params = {"branch": converged_regression()} | params
    cascade = kind(
        given.backbone,
        input="features",
        cv=PredefinedSplit(HELD),
        random_state=0,
        **params,
    )
    return cascade.fit(given.X, given.y)


@cache
def calexnet():
    """CalexNet at a margin where all depths are used; not to be changed."""
    return fit(
        margin=0.05, margin_mode="relative", alignment_margin=0.2, alignment_mixture=0.8
    )


@cache
def reference():
    """The reference without alignment; not to be changed."""
    return fit(NoAlignmentClassifier, margin=0.0)


@cache
def sdn():
    """A baseline whose heads are trained together; not to be changed."""
    return fit(SDNClassifier, threshold=0.6)
