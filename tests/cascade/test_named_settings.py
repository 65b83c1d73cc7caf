"""The paper's setting, and the recipe's, are one argument away."""

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import CascadeClassifier
from sk_calex.cascade import PAPER_SETTINGS, RECIPE_SETTINGS
from sk_calex.policies import OptimalStopping
from tests._cascade_models import images, small_branch, tiny_backbone


def test_the_setting_is_that_of_the_paper():
    params = CascadeClassifier(**PAPER_SETTINGS).get_params()
    expected = {
        "margin": 0.2,
        "targets": "soft",
        "alpha": 1.0,
        "branch__temperature": 4.0,
        "alignment__kind": "soft",
        "alignment__mixture": 1.0,
        "calibrator__margin_mode": "relative",
        "calibrator__calibrate_on": "survivors",
    }
    assert {name: params[name] for name in expected} == expected


def test_it_can_be_fitted_and_cloned():
    X, y = images(90)
    small = {**PAPER_SETTINGS, "branch": small_branch("gap", temperature=4.0)}
    cascade = clone(CascadeClassifier(tiny_backbone(), **small, random_state=0))
    cascade.fit(X, y)
    assert cascade.alpha_ == [1.0, 1.0]
    assert cascade.margin_ == 0.2
    assert np.isfinite(cascade.predict_proba(X)).all()


@pytest.mark.parametrize("settings", [PAPER_SETTINGS, RECIPE_SETTINGS])
def test_they_cannot_be_changed_by_accident(settings):
    with pytest.raises(TypeError):
        settings["margin"] = 0.1


def test_the_recipe_chooses_targets_and_stops_optimally():
    X, y = images(240)
    cascade = CascadeClassifier(
        tiny_backbone(),
        **RECIPE_SETTINGS,
        branch=small_branch("gap"),
        max_accuracy_drop=0.2,
        random_state=0,
    )
    fitted = clone(cascade).fit(X, y)
    assert set(fitted.alpha_) <= {0.0, 0.5, 1.0}
    assert isinstance(fitted.calibrator_, OptimalStopping)
    assert fitted.calibrator_.max_accuracy_drop == 0.2
    assert fitted.ensembles_ is not None
    assert set(fitted.predict(X)) <= {0, 1, 2}
    path = fitted.calibrator_.price_path_
    kept = path["within"] & (path["price"] == fitted.calibrator_.price_)
    assert kept.any() or np.isnan(fitted.calibrator_.price_)
