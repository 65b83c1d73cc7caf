"""Plain 2-D data: missing values, sparse, data frames, and several branches."""

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array, csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import get_tags

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    MarginSearchCV,
    baselines,
    margin_curve,
)
from sk_calex.cascade._fit_key import digest_for, input_digest

rng = np.random.default_rng(0)
X = rng.normal(size=(160, 4))
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).astype(int)
GAPS = np.where(rng.random(X.shape) < 0.1, np.nan, X)
SPARSE = csr_array(np.where(np.abs(X) > 0.7, X, 0.0))
TREES = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5)


def cascade(branch=None, final_estimator=None, **params):
    return CascadeClassifier(
        branch=branch, final_estimator=final_estimator, random_state=0, **params
    )


def frame():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X, columns=list("abcd"))
    table["kind"] = pd.Categorical(np.where(Y, "u", "v"))
    return table


def encoding():
    """A pipeline that needs a data frame: it takes columns by name."""
    columns = make_column_transformer(
        (OneHotEncoder(), ["kind"]), ("passthrough", ["a"])
    )
    return make_pipeline(columns, LogisticRegression())


def check_runs(fitted, data):
    """What a fit must give, whatever its data are: answers from batches, and a cost."""
    labels, depth = fitted.predict(data, return_depth=True)
    assert labels.shape == depth.shape == Y.shape
    proba = fitted.stage_probabilities(data)
    np.testing.assert_array_equal(
        fitted.classes_[proba[depth, np.arange(160)].argmax(1)], labels
    )
    assert np.isfinite(fitted.flops_reduction(data))
    assert fitted.n_features_in_ == data.shape[1]
    return fitted


def test_missing_values_reach_classifiers_that_take_them():
    fitted = check_runs(cascade(TREES, TREES).fit(GAPS, Y), GAPS)
    np.testing.assert_array_equal(
        fitted.stage_probabilities(GAPS)[1],
        fitted.final_estimator_.predict_proba(GAPS),
    )
    imputing = make_pipeline(SimpleImputer(), LogisticRegression())
    check_runs(cascade([imputing, TREES], imputing).fit(GAPS, Y), GAPS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"X contains NaN, which branch=LogisticRegression\(.*tag allow_nan"),
        ({"branch": TREES}, "NaN, which final_estimator=LogisticRegression"),
        (
            {"branch": BranchClassifier("gap"), "final_estimator": TREES},
            "NaN, which branch=BranchClassifier",
        ),
        (
            {
                "branch": make_pipeline(StandardScaler(), LogisticRegression()),
                "final_estimator": TREES,
            },
            "branch=Pipeline.* does not take X, which has missing values: Input X",
        ),
    ],
)
def test_missing_values_are_refused_by_name_elsewhere(given, message):
    with pytest.raises(ValueError, match=message):
        cascade(**given).fit(GAPS, Y)


def test_missing_values_are_refused_when_they_come_only_later():
    fitted = cascade().fit(X, Y)
    with pytest.raises(ValueError, match="X contains NaN, which branch=Logistic"):
        fitted.predict(GAPS)


def test_infinity_is_refused_even_where_gaps_are_not():
    bad = X.copy()
    bad[3, 1] = np.inf
    with pytest.raises(ValueError, match="X contains infinity"):
        cascade(TREES, TREES).fit(bad, Y)


@pytest.mark.parametrize("form", [csr_array, coo_array])
def test_sparse_equals_dense(form):
    # Linear models: trees break ties between splits otherwise where data are sparse.
    branches = [LogisticRegression(C=0.1), LogisticRegression()]
    one = cascade(branches, cv=2, ensemble=True)
    two = clone(one)
    check_runs(one.fit(form(SPARSE), Y), form(SPARSE))
    two.fit(SPARSE.toarray(), Y)
    np.testing.assert_allclose(
        one.predict_proba(form(SPARSE)), two.predict_proba(SPARSE.toarray()), rtol=1e-5
    )


def test_sparse_is_refused_by_name_where_it_is_not_taken():
    with pytest.raises(ValueError, match="sparse, which final_estimator=HistGradient"):
        cascade(None, TREES).fit(SPARSE, Y)
    with pytest.raises(ValueError, match=r"X is sparse.*Give X.toarray\(\)"):
        baselines.SDNClassifier(max_iter=1).fit(SPARSE, Y)


def test_data_frames_reach_pipelines_that_take_columns_by_name():
    table = frame()
    fitted = check_runs(cascade(encoding(), TREES).fit(table, Y), table)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c", "d", "kind"]
    curve = margin_curve(fitted, table, Y, margins=[0.0, 0.1])
    assert len(curve.accuracy) == 2


def test_categories_reach_trees_as_categories():
    """Rows differ by category alone, so only trees that see it can be right."""
    table = frame()[["kind"]].assign(noise=0.0)
    fitted = check_runs(cascade(TREES, TREES).fit(table, Y), table)
    assert fitted.score(table, Y) == 1


def test_data_frames_with_text_are_refused_by_name():
    table = frame()
    with pytest.raises(ValueError, match=r"final_estimator=Logistic.*'kind': category"):
        cascade().fit(table, Y)
    for unable in (cascade(BranchClassifier("gap")), baselines.SDNClassifier()):
        with pytest.raises(ValueError, match="X holds text or categories"):
            unable.fit(table, Y)
    with pytest.raises(ValueError, match="X holds text or categories"):
        cascade().fit(table.to_numpy(), Y)


def test_an_empty_data_frame_is_refused():
    fitted = cascade().fit(frame()[["a", "b"]], Y)
    with pytest.raises(ValueError, match="X is empty"):
        fitted.predict(frame()[["a", "b"]][:0])


def test_unknown_categories_are_refused_by_name():
    table = frame()
    fitted = cascade(encoding(), TREES).fit(table, Y)
    fitted.thresholds_[:] = 0.5  # a branch at which nothing can exit reads nothing
    with pytest.raises(ValueError, match=r"Pipeline.*does not take X.*unknown categ"):
        fitted.predict(table.assign(kind="w"))


@pytest.mark.parametrize("data", ["gaps", "sparse", "frame"])
def test_searches_take_what_the_cascade_takes(data):
    given, branch = {
        "gaps": lambda: (GAPS, TREES),
        "sparse": lambda: (SPARSE, None),
        "frame": lambda: (frame(), encoding()),
    }[data]()
    search = MarginSearchCV(cascade(branch, branch), max_accuracy_drop=1.0, cv=2)
    assert search.fit(given, Y).predict(given).shape == Y.shape
    grid = GridSearchCV(cascade(branch, branch), {"margin": [0.0, 0.1]}, cv=2)
    assert grid.fit(given, Y).predict(given).shape == Y.shape


def test_several_branches_read_the_same_columns():
    branches = [GaussianNB(), RandomForestClassifier(3, random_state=0)]
    fitted = check_runs(cascade(branches, TREES).fit(X, Y), X)
    assert fitted.layout_.names == ("branch_1", "branch_2")
    assert fitted.layout_.feature_names().tolist() == [f"x[{i}]" for i in range(4)]
    for k in range(2):
        np.testing.assert_array_equal(
            fitted.stage_probabilities(X)[k], fitted.branches_[k].predict_proba(X)
        )


def test_a_pipeline_hands_sample_weights_to_its_last_step():
    """Each row is there twice, with both labels: the heavier one decides."""
    doubled, labels = np.r_[X, X], np.r_[Y, 1 - Y]
    weight = np.r_[np.full(160, 10.0), np.full(160, 0.1)]
    grid = GridSearchCV(GaussianNB(), {"var_smoothing": [1e-9]}, cv=2)
    for branch in (
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), grid),
    ):
        for routing in (False, True):
            with config_context(enable_metadata_routing=routing):
                estimator = cascade(branch, clone(branch), targets="labels")
                if routing:
                    estimator.set_fit_request(sample_weight=True)
                fitted = estimator.fit(doubled, labels, sample_weight=weight)
            assert fitted.score(X, Y) > 0.8


def test_a_pipeline_whose_last_step_takes_no_weights_is_refused():
    from sklearn.neighbors import KNeighborsClassifier

    branch = make_pipeline(StandardScaler(), KNeighborsClassifier())
    with pytest.raises(ValueError, match=r"branch=Pipeline.* takes no sample_weight"):
        cascade(branch).fit(X, Y)


@pytest.mark.parametrize(
    ("estimator", "sparse", "missing"),
    [
        (cascade(), True, False),
        (cascade(TREES, TREES), False, True),
        (cascade(BranchClassifier("gap")), False, False),
        (cascade(DummyClassifier(), DummyClassifier()), True, False),
        (cascade(input="features"), False, False),
        (baselines.SDNClassifier(), False, False),
    ],
)
def test_tags_are_those_of_the_classifiers(estimator, sparse, missing):
    tags = get_tags(estimator).input_tags
    assert (tags.sparse, tags.allow_nan) == (sparse, missing)


def test_digests_tell_contents_and_types_apart():
    other = SPARSE.copy()
    other.data[0] += 1
    assert input_digest(SPARSE) == input_digest(SPARSE.copy()) != input_digest(other)
    assert digest_for(None, SPARSE) == digest_for(None, SPARSE.copy())
    assert digest_for(None, SPARSE) != digest_for(None, other)
    pd = pytest.importorskip("pandas")
    numbers = pd.DataFrame({"a": [1, 2, 3]})
    assert input_digest(numbers) != input_digest(numbers.astype("category"))


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr"])
def test_every_form_of_sparse_is_taken(form):
    for made in (SPARSE.asformat(form), csr_matrix(SPARSE).asformat(form)):
        fitted = cascade().fit(made, Y)
        assert fitted.predict(made).shape == Y.shape
