"""What moves a fitted cascade without training it: margins, memory, jobs."""

import numpy as np
import pytest
from joblib import Memory, parallel_config
from sklearn.linear_model import LogisticRegression

from tests._cascade_models import small_branch, tiny_backbone
from tests._quick_cascade import X, Y, cascade, same_cascade


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


# -- margins ---------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [-0.4, 0.0, 0.1, 0.5])
def test_another_margin_is_another_fit(features, margin):
    """The thresholds of a fresh fit, without one."""
    fitted = cascade(margin=0.05).fit(features, Y)
    fresh = cascade(margin=margin).fit(features, Y)
    np.testing.assert_array_equal(fitted.thresholds_at(margin), fresh.thresholds_)
    assert fitted.margin == 0.05
    assert fitted.set_margin(margin) is fitted
    for name in ("thresholds_", "enabled_", "precision_", "support_"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(fresh, name))
    assert fitted.get_params()["margin"] == margin
    np.testing.assert_array_equal(
        fitted.predict_proba(features), fresh.predict_proba(features)
    )


def test_margins_there_and_back(features):
    fitted = cascade().fit(features, Y)
    before = fitted.thresholds_.copy()
    fitted.set_margin(0.7)
    assert not np.array_equal(fitted.thresholds_, before)
    np.testing.assert_array_equal(fitted.set_margin(0.05).thresholds_, before)


def test_margins_may_move_where_nothing_is_aligned(features):
    """Without alignment the branches depend on no margin, "same" or not."""
    fitted = cascade(alignment="none", alignment_margin="same").fit(features, Y)
    fresh = cascade(alignment="none", margin=0.3).fit(features, Y)
    np.testing.assert_array_equal(fitted.set_margin(0.3).thresholds_, fresh.thresholds_)


# -- memory and jobs -------------------------------------------------------------------


FITS = []


class Counted(LogisticRegression):
    """Counts its fits."""

    def fit(self, X, y, sample_weight=None):
        FITS.append(len(X))
        return super().fit(X, y, sample_weight)


# joblib warns of slow disks, which a busy machine has.
@pytest.mark.filterwarnings("ignore:Persisting input arguments:UserWarning")
@pytest.mark.parametrize("make", [str, lambda folder: Memory(folder, verbose=0)])
def test_memory_keeps_fitted_branches(features, tmp_path, make):
    memory = make(tmp_path)
    FITS.clear()
    first = cascade(branch=Counted(), memory=memory).fit(features, Y)
    assert len(FITS) == 2
    again = cascade(branch=Counted(), memory=memory, margin=0.4).fit(features, Y)
    assert len(FITS) == 2  # another margin needs no other branches
    np.testing.assert_array_equal(first.branches_[1].coef_, again.branches_[1].coef_)
    same_cascade(first, again.set_margin(0.05), features)
    cascade(branch=Counted(), memory=memory, alignment_margin=0.4).fit(features, Y)
    assert len(FITS) == 3  # the second branch alone is trained on others
    cascade(branch=Counted(C=0.1), memory=memory).fit(features, Y)
    assert len(FITS) == 5
    cascade(branch=Counted()).fit(features, Y)
    assert len(FITS) == 7


def test_memory_of_torch_branches(features, tmp_path):
    settings = {"branch": small_branch(), "memory": str(tmp_path)}
    first = cascade(**settings).fit(features, Y)
    again = cascade(**settings).fit(features, Y)
    np.testing.assert_array_equal(
        first.predict_proba(features), again.predict_proba(features)
    )


@pytest.mark.parametrize("settings", [{"cv": 3}, {"cross_fit": 3}], ids=str)
def test_jobs_change_nothing(features, settings):
    one = cascade(branch=small_branch(), **settings).fit(features, Y)
    with parallel_config(backend="threading"):
        two = cascade(branch=small_branch(), n_jobs=2, **settings).fit(features, Y)
    np.testing.assert_array_equal(one.thresholds_, two.thresholds_)
    np.testing.assert_array_equal(
        one.predict_proba(features), two.predict_proba(features)
    )
