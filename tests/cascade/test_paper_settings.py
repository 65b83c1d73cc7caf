"""The paper's setting is one argument away."""

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import CascadeClassifier
from sk_calex.cascade import PAPER_SETTINGS
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


def test_it_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        PAPER_SETTINGS["margin"] = 0.1
