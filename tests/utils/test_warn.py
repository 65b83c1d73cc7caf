"""Warnings name the line of whoever called, through our files and those between."""

import warnings

import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_calex import CascadeClassifier, MarginSearchCV
from sk_calex.branches import BranchCostWarning
from sk_calex.branches._defaults import warn_of_costly_branches
from sk_calex.calibration import CalibrationWarning
from sk_calex.utils._warn import warn_caller


def cascade():
    """Make a cascade that warns of few rows, where it is fitted on few."""
    return CascadeClassifier(
        branch=LogisticRegression(),
        final_estimator=LogisticRegression(),
        margin=0.1,
        cv=2,
        random_state=0,
    )


FORMS = {
    "cascade": cascade,
    "pipeline": lambda: make_pipeline(StandardScaler(), cascade()),
    "grid search": lambda: GridSearchCV(
        cascade(), {"margin": [0.1, 0.2]}, cv=2, refit=False
    ),
    "margin search": lambda: MarginSearchCV(
        cascade(), max_accuracy_drop=1.0, margins=[0.1], cv=2, refit=False
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_warnings_of_a_fit_name_the_line_that_fits(form):
    X, y = load_iris(return_X_y=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FORMS[form]().fit(X[::3], y[::3])
    assert CalibrationWarning in {w.category for w in caught}
    assert {w.filename for w in caught} == {__file__}


def test_warning_of_costly_branches_names_the_caller():
    with pytest.warns(BranchCostWarning) as caught:
        warn_of_costly_branches([5.0], [10.0, 10.0])
    assert [w.filename for w in caught] == [__file__]


def test_warn_caller_names_the_line_itself():
    with pytest.warns(FutureWarning, match="^said$") as caught:
        warn_caller("said", FutureWarning)
    assert [w.filename for w in caught] == [__file__]
