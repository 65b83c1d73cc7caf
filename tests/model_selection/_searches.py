"""Searches that are quick, and what they are fitted on."""

import pytest
from sklearn.model_selection import StratifiedKFold

from sk_calex import MarginSearchCV
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(160)
MARGINS = [-0.3, 0.0, 0.1, 0.3]
FOLDS = StratifiedKFold(2)


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


def cascade(**params):
    settings = {
        "input": "features",
        "branch": small_branch("gap"),
        "min_support": 3,
        "random_state": 0,
    }
    return flat_cascade(**(settings | params))


def search(estimator=None, **params):
    settings = {"margins": MARGINS, "cv": FOLDS}
    if "flops_budget" not in params:
        settings["max_accuracy_drop"] = 1.0
    return MarginSearchCV(estimator or cascade(), **(settings | params))
