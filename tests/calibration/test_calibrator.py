import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from sk_calex import SurvivorThresholdCalibrator, class_precision, precision_bars
from sk_calex.calibration._thresholds import find_thresholds
from tests._reference.calibration import slow_bars, slow_thresholds, top


def draw(n=60, n_classes=3, seed=0):
    """Probabilities with many ties, and labels that mostly follow them."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 5, (n, n_classes)) + 0.5
    X /= X.sum(axis=1, keepdims=True)
    y = np.where(rng.random(n) < 0.7, X.argmax(axis=1), rng.integers(0, n_classes, n))
    y[:n_classes] = np.arange(n_classes)  # every class is there
    return X, y


def two_class(first):
    """Rows with these probabilities of class 0."""
    p = np.asarray(first, dtype=float)
    return np.column_stack([p, 1 - p])


def calibrator(margin=0.0, min_support=1, **kwargs):
    return SurvivorThresholdCalibrator(margin, min_support=min_support, **kwargs)


def assert_same(one, other):
    for name in ("thresholds_", "enabled_", "precision_", "support_", "bars_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# -- thresholds, case by case ----------------------------------------------------------


@pytest.mark.parametrize("margin_mode", ["relative", "absolute"])
@pytest.mark.parametrize("rule", ["smallest", "first_violation"])
@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.1, 0.3])
def test_many_samples_against_plain_loops(margin, margin_mode, rule):
    rng = np.random.default_rng(1)
    X, y = draw(n=400, n_classes=5, seed=1)
    weight = rng.integers(0, 5, 400) / 2
    survivors = rng.random(400) < 0.8
    reference = np.array([0.9, 0.7, np.nan, 0.8, 0.6])
    found = calibrator(margin, 4, margin_mode=margin_mode, rule=rule).fit(
        X,
        y,
        reference_precision=reference,
        survivors=survivors,
        sample_weight=weight,
    )
    scores, predicted = top(X)
    slow = slow_thresholds(
        scores,
        predicted,
        y,
        weight,
        survivors,
        slow_bars(reference, margin, margin_mode),
        min_support=4,
        rule=rule,
    )
    expected = [t.lowest - min(1e-6, (t.lowest - t.next_below) / 2) for t in slow]
    np.testing.assert_allclose(found.thresholds_, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found.precision_, [t.precision for t in slow])
    np.testing.assert_array_equal(found.support_, [t.support for t in slow])


def test_the_rules_differ_where_precision_recovers():
    # Right, wrong, right, right: precision 1, 1/2, 2/3, 3/4.
    X, y = two_class([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 0, 0])
    smallest = calibrator(0.25).fit(X, y)
    assert smallest.exits(0, X).all()
    assert smallest.precision_[0] == 0.75
    first = calibrator(0.25, rule="first_violation").fit(X, y)
    assert first.exits(0, X).tolist() == [True, False, False, False]
    assert first.precision_[0] == 1


def test_a_prefix_below_the_support_is_no_violation():
    # The best sample is wrong, but one sample is not evidence.
    X, y = two_class([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 0, 0])
    found = calibrator(0.25, min_support=4, rule="first_violation").fit(X, y)
    assert found.exits(0, X).all()
    assert not calibrator(0.25, rule="first_violation").fit(X, y).enabled_[0]


def test_a_threshold_never_separates_equal_scores():
    # At 0.8 the right sample alone would do; the wrong one has the same score.
    X, y = two_class([0.9, 0.8, 0.8]), np.array([0, 0, 1])
    for order in ([0, 1, 2], [0, 2, 1]):
        found = calibrator().fit(X[order], y[order])
        assert found.exits(0, X).tolist() == [True, False, False]


def test_the_bar_may_be_met_exactly():
    X, y = two_class([0.9, 0.8, 0.7, 0.6, 0.55]), np.array([0, 0, 0, 0, 1])
    found = calibrator().fit(X, y, reference_precision=[0.8, 1])
    assert found.support_[0] == 5
    assert found.precision_[0] == found.bars_[0] == 0.8


@pytest.mark.parametrize(("min_support", "enabled"), [(3, True), (3.5, False)])
def test_support_is_counted_in_sample_weight(min_support, enabled):
    X, y = two_class([0.9, 0.8, 0.3]), np.array([0, 0, 1])
    found = calibrator(min_support=min_support).fit(X, y, sample_weight=[1, 2, 1])
    assert found.enabled_.tolist() == [enabled, False]
    assert found.support_.tolist() == [3.0 * enabled, 0]


def test_support_is_ten_samples_by_default():
    for n, enabled in ((9, False), (10, True)):
        X = two_class(np.linspace(0.6, 0.9, n))
        found = SurvivorThresholdCalibrator().fit(X, np.zeros(n, dtype=int))
        assert found.enabled_[0] == enabled


def test_a_class_that_is_never_predicted_never_exits():
    X = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    found = calibrator(0.9).fit(X, [0, 1])
    assert found.enabled_.tolist() == [True, True, False]
    assert found.thresholds_[2] == np.inf
    assert np.isnan(found.precision_[2])
    assert found.support_[2] == 0
    assert found.exits(0, [[0.1, 0.1, 0.8], [0.0, 0.0, 1.0]]).tolist() == [False, False]


def test_a_class_that_misses_its_bar_never_exits():
    X, y = two_class([0.9, 0.8]), np.array([1, 1])
    found = calibrator().fit(X, y)
    assert not found.enabled_.any()
    assert not found.exits(0, X).any()
    assert not found.exits(0, [[1.0, 0.0]]).any()


def test_nobody_exits_where_nobody_arrives():
    X, y = draw()
    for nobody in (
        {"survivors": np.zeros(60, dtype=bool)},
        {"survivors": np.arange(60) < 30, "sample_weight": np.arange(60) >= 30},
    ):
        found = calibrator(0.9, 0).fit(X, y, **nobody)
        assert not found.enabled_.any()
        assert not found.exits(0, X).any()


def test_only_survivors_are_asked():
    # The wrong sample has exited before: the branch no longer answers for it.
    X, y = two_class([0.9, 0.8, 0.7]), np.array([1, 0, 0])
    everyone = calibrator().fit(X, y)
    survivors = calibrator().fit(X, y, survivors=[False, True, True])
    assert not everyone.enabled_[0]
    assert survivors.exits(0, X).all()
    assert survivors.support_[0] == 2


def test_the_threshold_is_a_hair_below_the_score():
    X, y = two_class([0.9, 0.7]), np.array([0, 1])
    threshold = calibrator().fit(X, y).thresholds_[0]
    assert 0.9 - 1.01e-6 < threshold < 0.9 - 1e-7


def test_the_hair_is_split_between_close_scores():
    X, y = two_class([0.9, 0.9 - 2e-7]), np.array([0, 1])
    threshold = calibrator().fit(X, y).thresholds_[0]
    np.testing.assert_allclose(threshold, 0.9 - 1e-7, rtol=0, atol=1e-12)


@pytest.mark.parametrize("high", [0.75, np.nextafter(0.75, 1)])
@pytest.mark.parametrize("steps", [1, 2])
def test_neighbouring_floats_are_told_apart(high, steps):
    # Halfway between neighbours rounds to the even one, here the upper or the lower.
    low = high
    for _ in range(steps):
        low = np.nextafter(low, 0)
    X = two_class([high, low])
    assert calibrator().fit(X, [0, 1]).exits(0, X).tolist() == [True, False]


def test_bars_default_to_full_precision():
    X, y = draw()
    assert calibrator().fit(X, y).bars_.tolist() == [1, 1, 1]
    assert calibrator(0.2).fit(X, y).bars_.tolist() == [0.8, 0.8, 0.8]


def test_rounding_leaves_an_all_wrong_prefix_at_precision_zero():
    # Sums of these weights over both classes differ in their last bit.
    found = find_thresholds(
        np.array([0.9, 0.8, 0.7]),
        np.array([0, 0, 1]),
        np.array([True, True, False]),
        np.array([0.1, 0.7, 0.1]),
        np.zeros(2),
        min_support=0,
        rule="smallest",
    )
    assert found.enabled.tolist() == [True, True]
    assert found.precision.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_rounding_leaves_an_all_right_prefix_at_precision_one(seed):
    X, y = draw(n=300, seed=seed)
    weight = np.random.default_rng(seed).random(300)
    y[:] = X.argmax(axis=1)
    found = calibrator().fit(X, y, sample_weight=weight)
    assert found.precision_.tolist() == [1, 1, 1]
    assert found.exits(0, X).all()


def test_float32_weights_are_summed_in_float64():
    X = two_class([0.9, 0.8, 0.3])
    weight = np.array([2**24, 1, 1], dtype=np.float32)
    assert calibrator().fit(X, [0, 0, 1], sample_weight=weight).support_[0] == 2**24 + 1


# -- labels ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["ant", "bee", "cat"], [1, 2, 3], [-5, 0, 7], [0.0, 1.0, 2.0]]
)
def test_any_labels_give_the_same_thresholds(names):
    X, y = draw()
    named = calibrator(0.3).fit(X, np.array(names)[y])
    assert_same(named, calibrator(0.3).fit(X, y))
    np.testing.assert_array_equal(named.classes_, names)


def test_boolean_labels():
    X, y = draw(n_classes=2)
    assert_same(calibrator(0.3).fit(X, y == 1), calibrator(0.3).fit(X, y))


def test_codes_may_miss_a_class():
    X, y = draw(n_classes=4)
    there = y != 1
    found = calibrator(0.3).fit(X[there], y[there])
    assert found.classes_.tolist() == [0, 1, 2, 3]
    # The mask leaves the same samples, among labels that miss no class.
    assert_same(found, calibrator(0.3).fit(X, y, survivors=there))
    assert not found.enabled_[1]


@pytest.mark.parametrize("y", [["a", "b"], [0, 3], [-1, 0], [0.0, 1.0]])
def test_labels_that_fit_no_columns_are_refused(y):
    X = np.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match="y has 2 classes but X has 3 columns"):
        calibrator().fit(X, y)


def test_continuous_labels_are_refused():
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        calibrator().fit(two_class([0.9, 0.8]), [0.3, 1.7])


# -- the estimator ---------------------------------------------------------------------


def test_parameters_are_those_of_the_signature():
    params = {
        "margin": 0.1,
        "max_accuracy_drop": 0.01,
        "margin_mode": "absolute",
        "min_support": 3,
        "rule": "first_violation",
        "shrinkage": 50,
        "calibrate_on": "all",
        "rare_classes": "shared",
    }
    estimator = SurvivorThresholdCalibrator(**params)
    assert estimator.get_params() == params
    assert estimator.set_params(margin=0.2) is estimator
    assert estimator.get_params() == {**params, "margin": 0.2}
    assert repr(SurvivorThresholdCalibrator(0.1)).endswith("(margin=0.1)")


def test_a_clone_is_unfitted_and_fits_alike():
    X, y = draw()
    estimator = calibrator(0.2, rule="first_violation").fit(X, y)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        copy.exits(0, X)
    assert_same(copy.fit(X, y), estimator)


def test_fit_leaves_the_parameters_alone_and_forgets_the_last_fit():
    X, y = draw()
    estimator = calibrator(0.2)
    before = dict(vars(estimator))
    estimator.fit(*draw(n=90, n_classes=5, seed=1), survivors=np.arange(90) < 50)
    assert estimator.fit(X, y) is estimator
    assert_same(estimator, calibrator(0.2).fit(X, y))
    assert estimator.n_features_in_ == 3
    assert {name: vars(estimator)[name] for name in before} == before


def test_a_changed_margin_counts_from_the_next_fit():
    X, y = draw()
    estimator = calibrator(-1.0).fit(X, y)
    strict = estimator.thresholds_
    estimator.set_params(margin=0.9)
    np.testing.assert_array_equal(estimator.thresholds_, strict)
    assert (estimator.fit(X, y).thresholds_ < strict).all()


def test_a_pickle_decides_alike():
    X, y = draw()
    estimator = calibrator(0.2).fit(X, y)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert_same(loaded, estimator)
    np.testing.assert_array_equal(loaded.exits(0, X), estimator.exits(0, X))


def test_read_only_input_is_not_written_to():
    X, y = draw()
    arrays = {
        "reference_precision": np.array([0.9, np.nan, 0.8]),
        "survivors": np.arange(60) < 50,
        "sample_weight": np.arange(60.0),
    }
    kept = [a.copy() for a in (X, y, *arrays.values())]
    expected = calibrator(0.2).fit(X, y, **arrays)
    for now, before in zip((X, y, *arrays.values()), kept, strict=True):
        np.testing.assert_array_equal(now, before)
        now.setflags(write=False)
    found = calibrator(0.2).fit(X, y, **arrays)
    assert_same(found, expected)
    np.testing.assert_array_equal(found.exits(0, X), expected.exits(0, X))


def test_the_kind_of_container_does_not_matter():
    pd = pytest.importorskip("pandas")
    X, y = draw()
    weight, alive, reference = np.arange(60.0), np.arange(60) < 50, [0.9, 0.7, 0.8]
    expected = calibrator().fit(
        X, y, sample_weight=weight, survivors=alive, reference_precision=reference
    )
    for convert, table in (
        (lambda a: np.asarray(a).tolist(), X.tolist()),
        (pd.Series, pd.DataFrame(X)),
        (np.asarray, np.asfortranarray(X)),
        (lambda a: np.repeat(a, 2)[::2], np.repeat(X, 2, axis=0)[::2]),
    ):
        found = calibrator().fit(
            table,
            convert(y),
            sample_weight=convert(weight),
            survivors=convert(alive),
            reference_precision=convert(reference),
        )
        assert_same(found, expected)
        np.testing.assert_array_equal(found.exits(0, table), expected.exits(0, X))


def test_exits_before_fit_are_refused():
    with pytest.raises(NotFittedError, match="SurvivorThresholdCalibrator"):
        calibrator().exits(0, two_class([0.9]))


def test_exits_of_other_columns_are_refused():
    found = calibrator().fit(*draw())
    with pytest.raises(ValueError, match=r"X has 2 features, but .* expecting 3"):
        found.exits(0, two_class([0.9]))


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("margin", "0.1"),
        ("margin", None),
        ("margin_mode", "ratio"),
        ("min_support", -1),
        ("min_support", float("nan")),
        ("min_support", "10"),
        ("rule", "largest"),
    ],
)
def test_a_bad_parameter_is_named(name, value):
    with pytest.raises(InvalidParameterError, match=f"'{name}' parameter"):
        SurvivorThresholdCalibrator(**{name: value}).fit(*draw())


@pytest.mark.parametrize("margin", [1, 1.5, np.inf, -np.inf, np.nan])
def test_a_margin_of_one_or_more_is_refused(margin):
    with pytest.raises(ValueError, match=r"margin=.*a finite number below 1"):
        calibrator(margin).fit(*draw())
    with pytest.raises(ValueError, match=r"margin=.*a finite number below 1"):
        precision_bars([0.5], margin)


@pytest.mark.parametrize("reach", ["fit", "exits"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[2.0, -1.0]], "X must hold probabilities"),
        ([[0.5, 0.2]], "X must hold probabilities"),
        ([[np.nan, 0.5]], "X contains NaN or infinity"),
        ([0.5, 0.5], "X must hold class probabilities of shape"),
        (np.empty((0, 2)), "0 sample"),
    ],
)
def test_what_is_no_probability_is_refused(reach, X, message):
    found = calibrator().fit(two_class([0.9, 0.8]), [0, 1])
    with pytest.raises(ValueError, match=message):
        found.exits(0, X) if reach == "exits" else found.fit(X, np.zeros(len(X), int))


@pytest.mark.parametrize(
    "survivors", [np.ones(59, bool), np.ones((60, 1), bool), np.ones(60), range(60)]
)
def test_survivors_are_a_mask(survivors):
    with pytest.raises(ValueError, match=r"survivors must be a boolean mask .*\(60,\)"):
        calibrator().fit(*draw(), survivors=survivors)


@pytest.mark.parametrize(
    "reference",
    [[0.5, 0.5], [[0.5, 0.5, 0.5]], 0.5, [0.5, 0.5, 1.1], [-0.1, 1, 1], [np.inf, 1, 1]],
)
def test_reference_precisions_are_one_a_class(reference):
    with pytest.raises(ValueError, match="reference_precision must hold 3 precisions"):
        calibrator().fit(*draw(), reference_precision=reference)


@pytest.mark.parametrize(
    "weight", [np.ones(59), np.full(60, -1.0), np.full(60, np.nan), np.zeros(60)]
)
def test_sample_weights_are_one_non_negative_number_a_sample(weight):
    with pytest.raises(ValueError, match="sample_weight"):
        calibrator().fit(*draw(), sample_weight=weight)


def test_labels_are_one_a_sample():
    X, y = draw()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        calibrator().fit(X, y[1:])


# -- class_precision and precision_bars ------------------------------------------------


def test_class_precision_is_unknown_where_nothing_is_predicted():
    precision = class_precision([0, 1, 1, 2], [0, 0, 1, 1], 4, [3, 1, 1, 0])
    np.testing.assert_array_equal(precision, [0.75, 1, np.nan, np.nan])


@pytest.mark.parametrize("bad", [[0, 2], [0, -1], [0.0, 1.0], ["a", "b"], [[0, 1]]])
@pytest.mark.parametrize("name", ["y", "predicted"])
def test_class_precision_takes_codes(name, bad):
    codes = {"y": [0, 1], "predicted": [0, 1], name: bad}
    with pytest.raises(ValueError, match=f"^{name} must hold .* from 0 to 1"):
        class_precision(**codes, n_classes=2)


def test_class_precision_takes_one_entry_a_sample():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        class_precision([0], [0, 1], 2)
    for weight in ([1], [1, -1], [0, 0]):
        with pytest.raises(ValueError, match="sample_weight"):
            class_precision([0, 1], [0, 1], 2, weight)


def test_bars_are_clipped():
    reference = [0.0, 0.5, 1.0, np.nan]
    np.testing.assert_allclose(precision_bars(reference, -1.0), [0, 1, 1, 1])
    np.testing.assert_allclose(precision_bars(reference, 0.1), [0, 0.45, 0.9, 1])
    np.testing.assert_allclose(
        precision_bars(reference, 0.7, "absolute"), [0, 0, 0.3, 1]
    )


def test_an_unknown_margin_mode_is_refused():
    with pytest.raises(ValueError, match="margin_mode='ratio' is unknown"):
        precision_bars([0.5], 0.1, "ratio")
