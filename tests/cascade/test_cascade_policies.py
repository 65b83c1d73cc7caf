"""Exit rules inside a cascade: the same depth, however the samples come."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sk_calex import CascadeClassifier, SurvivorAlignment
from sk_calex.calibration import StageTable, SurvivorThresholdCalibrator
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Oracle,
    OwnGate,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

RULES = [
    SharedThreshold(0.6),
    SharedThreshold(0.3, score="gap"),
    EntropyThreshold(0.9),
    Patience(1),
    SurvivorThresholdCalibrator(0.0, min_support=3),
    Quota(0.8),
    LearnedGate(0.8),
    RegretPriced(0.2),
    OptimalStopping(0.2),
]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=repr)
X, Y = images(150)
TEST, TRUTH = images(60, seed=1)
COMMON = {"branch": small_branch(), "max_accuracy_drop": 0.1, "random_state": 0}


@pytest.fixture(scope="module")
def cascades():
    """The same cascade on images and on features, and the test images' features."""
    backbone = tiny_backbone().fit(X)
    staged = flat_cascade(backbone, **COMMON).fit(X, Y)
    cached = flat_cascade(input="features", **COMMON)
    return staged, cached.fit(backbone.transform(X), Y), backbone.transform(TEST)


@EVERY_RULE
def test_samples_features_and_tables_agree(cascades, rule):
    staged, cached, features = cascades
    labels, depth = staged.set_calibrator(rule).predict(TEST, return_depth=True)
    others, same = cached.set_calibrator(rule).predict(features, return_depth=True)
    np.testing.assert_array_equal(same, depth)
    np.testing.assert_array_equal(others, labels)
    assert len(set(depth.tolist())) > 1
    table = stage_table(staged, TEST)
    np.testing.assert_array_equal(staged.calibrator_.depth(table), depth)
    np.testing.assert_array_equal(labels, table.predicted[depth, np.arange(60)])
    proba = cached.stage_probabilities(features)
    np.testing.assert_array_equal(cached.calibrator_.depth(proba), depth)
    # In any company and in batches of any size.
    rows = np.random.default_rng(0).permutation(60)[:37]
    staged.backbone_.batch_size = 7
    np.testing.assert_array_equal(staged.exit_depth(TEST[rows]), depth[rows])
    staged.backbone_.batch_size = 256


@EVERY_RULE
def test_a_rule_is_fitted_on_the_calibration_samples(cascades, rule):
    """By hand, from the probabilities of the samples that trained no branch."""
    _, cached, _ = cascades
    cached.set_calibrator(rule)
    table, codes = cached.calibration_.answers, cached.calibration_.labels
    assert table.n_samples == len(codes) == 30
    by_hand = clone(rule)
    if rule.knob == "margin":  # inside of a cascade its own counts
        by_hand.set_params(margin=cached.margin_)
    by_hand.fit(table, codes, costs=cached.depth_costs_)
    np.testing.assert_array_equal(cached.calibrator_.thresholds_, by_hand.thresholds_)
    assert not hasattr(rule, "thresholds_")


def test_which_samples_those_are(cascades):
    """What the stages say of them is what they say now."""
    staged, _, _ = cascades
    said = StageTable.from_probabilities(staged.stage_probabilities(X))
    known = {tuple(column) for column in said.confidence.T.round(5).tolist()}
    held = staged.calibration_.answers.confidence.T.round(5).tolist()
    assert {tuple(column) for column in held} <= known


def test_a_parameter_is_as_good_as_setting_it_later(cascades):
    _, cached, features = cascades
    given = (
        clone(cached)
        .set_params(calibrator=Quota(0.8))
        .fit(tiny_backbone().fit(X).transform(X), Y)
    )
    later = cached.set_calibrator(Quota(0.8))
    np.testing.assert_array_equal(
        given.calibrator_.thresholds_, later.calibrator_.thresholds_
    )
    np.testing.assert_array_equal(
        given.exit_depth(features), later.exit_depth(features)
    )


@pytest.mark.parametrize("settings", [{}, {"calibrate_on": "all"}, {"cv": 3}], ids=str)
def test_a_calibrator_in_a_cascade_is_one_fitted_alone(settings):
    """CalexNet's gate: the same thresholds from the same samples."""
    features, y = make_classification(
        300, n_informative=6, n_classes=3, random_state=0, shuffle=False
    )
    weight = np.random.default_rng(0).integers(1, 4, len(y))
    own = flat_cascade(
        branch=LogisticRegression(),
        margin=0.1,
        min_support=3,
        random_state=0,
        **settings,
    ).fit(features, y, weight)
    alone = clone(own.calibrator).set_params(margin=0.1)
    given = own.calibration_
    alone.fit(given.answers, given.labels, given.weight)
    np.testing.assert_array_equal(own.calibrator_.thresholds_, alone.thresholds_)
    np.testing.assert_array_equal(
        own.exit_depth(features), alone.depth(own.stage_probabilities(features))
    )
    assert own.calibrator.margin == 0.0  # the parameter stays as given


def test_two_margins_that_differ_are_refused(plain):
    rule = SurvivorThresholdCalibrator(0.2, min_support=3)
    message = "calibrator has margin=0.2 and the cascade has margin='auto'.*Set margin "
    with pytest.raises(ValueError, match=message):
        CascadeClassifier(calibrator=rule).fit(*plain)
    branch = LogisticRegression()
    fitted = CascadeClassifier(branch=branch, calibrator=rule, margin=0.2).fit(*plain)
    with pytest.raises(ValueError, match=message.replace("'auto'", "0.1")):
        fitted.set_margin(0.1)
    assert fitted.margin == 0.2
    message = "alignment__margin='same' follows .* decides without one"
    with pytest.raises(ValueError, match=message):
        CascadeClassifier(
            calibrator=Quota(), alignment=SurvivorAlignment(margin="same")
        ).fit(*plain)


def test_the_cost_counts_for_rules_that_weigh_it(cascades):
    staged, _, _ = cascades
    free = staged.set_calibrator(RegretPriced(0.0)).cost(TEST).mean()
    dear = staged.set_calibrator(RegretPriced(5.0)).cost(TEST).mean()
    assert dear < free


def test_own_gates_need_a_method_that_has_one(cascades):
    with pytest.raises(ValueError, match="needs a method that computes a confidence"):
        flat_cascade(calibrator=OwnGate(), **COMMON | {"branch": None}).fit(
            *make_classification(100, random_state=0)
        )
    staged, _, _ = cascades
    staged.set_calibrator(None)
    with pytest.raises(ValueError, match="Use SharedThreshold"):
        staged.set_calibrator(OwnGate())
    assert staged.calibrator is None


@pytest.mark.parametrize("calibrator", [Oracle(), 0.9, SharedThreshold])
def test_what_is_no_rule(calibrator):
    with pytest.raises(ValueError, match="'calibrator' parameter of CascadeClassifier"):
        flat_cascade(calibrator=calibrator).fit(
            *make_classification(60, random_state=0)
        )


def test_margins_do_not_move_a_cascade_with_another_rule(cascades):
    staged, _, _ = cascades
    staged.set_calibrator(Quota())
    with pytest.raises(
        ValueError, match=r"calibrator=Quota\(\) decides without a margin"
    ):
        staged.set_margin(0.2)
    staged.set_calibrator(None)
    assert staged.set_margin(0.2).margin == 0.2
    staged.set_margin("auto")


# -- scikit-learn ----------------------------------------------------------------------


def saved(cascade, features, y):
    """A score that tells rules apart also where they answer alike."""
    return cascade.flops_reduction(features)


@pytest.fixture(scope="module")
def plain():
    return make_classification(240, n_informative=6, n_classes=3, random_state=0)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (SharedThreshold(), [0.6, 0.9, np.inf]),
        (EntropyThreshold(), [0.3, 0.9]),
        (Quota(), [0.2, 5.0]),
        (RegretPriced(), [0.0, 2.0]),
    ],
    ids=repr,
)
def test_grid_search_over_the_knob(plain, rule, values):
    cascade = flat_cascade(branch=LogisticRegression(), calibrator=rule, random_state=0)
    grid = {f"calibrator__{rule.knob}": values}
    search = GridSearchCV(cascade, grid, cv=2, scoring=saved, error_score="raise")
    search.fit(*plain)
    assert getattr(rule, rule.knob) == type(rule)().get_params()[rule.knob]
    best = search.best_params_[f"calibrator__{rule.knob}"]
    assert getattr(search.best_estimator_.calibrator_, rule.knob) == best
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores.tolist())) == len(values)


def test_grid_search_over_rules(plain):
    cascade = flat_cascade(branch=LogisticRegression(), random_state=0)
    rules = [None, SharedThreshold(0.5), Quota()]
    grid = [
        {"calibrator": rules[:1], "margin": [0.05]},
        {"calibrator": rules[1:], "margin": ["auto"]},  # without effect on these
    ]
    search = GridSearchCV(cascade, grid, cv=2, scoring=saved, error_score="raise")
    search.fit(*plain)
    assert search.best_params_["calibrator"] in rules
    assert len(set(search.cv_results_["mean_test_score"].tolist())) == 3


def test_clone_and_parameters(plain):
    cascade = flat_cascade(
        branch=LogisticRegression(), calibrator=SharedThreshold(0.4), random_state=0
    ).fit(*plain)
    copy = clone(cascade)
    assert copy.calibrator is not cascade.calibrator
    assert copy.get_params()["calibrator__threshold"] == 0.4
    copy.set_params(calibrator__threshold=0.7, calibrator__score="gap")
    assert cascade.calibrator.threshold == 0.4
    assert copy.fit(*plain).calibrator_.threshold == 0.7
    assert (copy.calibrator_.thresholds_ == 0.7).all()
    own = cascade.set_calibrator(None).calibrator_
    assert (own.margin, own.margin_mode) == ("auto", "local")


@pytest.mark.parametrize("rule", [Quota(0.7), LearnedGate(0.8), RegretPriced(0.1)])
def test_sample_weights_reach_the_rule(plain, rule):
    features, y = plain
    weight = np.random.default_rng(0).integers(1, 4, len(y))
    cascade = flat_cascade(
        branch=LogisticRegression(), calibrator=rule, random_state=0
    ).fit(features, y, weight)
    by_hand = clone(rule).fit(
        cascade.calibration_.answers,
        cascade.calibration_.labels,
        cascade.calibration_.weight,
        costs=cascade.depth_costs_,
    )
    assert set(cascade.calibration_.weight.tolist()) == {1.0, 2.0, 3.0}
    np.testing.assert_array_equal(
        cascade.exit_depth(features),
        by_hand.depth(cascade.stage_probabilities(features)),
    )


def test_a_cascade_without_a_rule_is_none():
    with pytest.raises(NotImplementedError):
        BaseCascade()._rule()
    with pytest.raises(NotImplementedError):
        BaseCascade()._train(None, None)
