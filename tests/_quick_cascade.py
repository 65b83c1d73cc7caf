"""The cascade of the tests: quick to fit, with exits at every depth."""

import numpy as np
from sklearn.model_selection import PredefinedSplit

from sk_calex import CascadeClassifier
from tests._cascade_models import (
    composed,
    converged_regression,
    images,
    small_branch,
    tiny_backbone,
)

X, Y = images(180)
TEST, TEST_Y = images(90, seed=1)
HELD = np.where(np.arange(180) % 3 == 0, 0, -1)  # every third row calibrates
FIXED = PredefinedSplit(HELD)


def cascade(**params):
    """On features, with branches that are fitted at once and exits at every depth."""
    params = {
        "input": "features",
        "branch": converged_regression(),
        "margin": 0.05,
        "alignment_margin": 0.05,
        "alignment_mixture": 1.0,
        "min_support": 3,
        "cv": FIXED,
        "random_state": 0,
    } | params
    return CascadeClassifier(**composed(**params))


def on_images(**params):
    params = {"input": "samples", "branch": small_branch()} | params
    return cascade(backbone=params.pop("backbone", tiny_backbone()), **params)


def same_cascade(a, b, given, rtol=1e-6):
    np.testing.assert_allclose(a.thresholds_, b.thresholds_, rtol=rtol)
    np.testing.assert_allclose(a.predict_proba(given), b.predict_proba(given), rtol)
