"""What holds of every baseline; each test file runs these on its own method.

`make(**params)` gives an unfitted cascade with small heads, without a backbone.
"""

import pickle

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import PredefinedSplit, StratifiedKFold

from sk_calex.model_selection import operating_curve
from tests._cascade_models import images, tiny_backbone

X, Y = images(180)
TEST, TEST_Y = images(90, seed=1)
HELD = np.where(np.arange(180) % 3 == 0, 0, -1)  # every third row calibrates
FIXED = PredefinedSplit(HELD)


def features():
    """The tapped features of the training images, and of the test images."""
    backbone = tiny_backbone().fit(X)
    return backbone.transform(X), backbone.transform(TEST)


def same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def staged_is_vectorised(make, value):
    staged = make(backbone=tiny_backbone(), cv=FIXED).fit(X, Y)
    train, test = features()
    cached = make(input="features", cv=FIXED).fit(train, Y)
    for cascade in (staged, cached):
        cascade.set_operating_point(value)
    labels, depth = staged.predict(TEST, return_depth=True)
    assert set(depth) == {0, 1, 2}  # some are left behind, some go on
    same((labels, depth), cached.predict(test, return_depth=True))
    np.testing.assert_allclose(
        staged.predict_proba(TEST), cached.predict_proba(test), rtol=1e-4, atol=1e-6
    )
    # One by one, nobody is left behind in a batch.
    alone = [staged.predict(x[None], return_depth=True) for x in TEST[:9]]
    same((labels[:9], depth[:9]), (np.ravel(part) for part in zip(*alone, strict=True)))
    proba = staged.stage_probabilities(TEST)
    np.testing.assert_allclose(
        proba[depth, np.arange(90)], staged.predict_proba(TEST), rtol=1e-4, atol=1e-6
    )


def integer_weights_are_repetition(make, value):
    train, _ = features()
    repeat = np.random.default_rng(0).integers(0, 4, 180)
    cascade = make(input="features", cv=FIXED)
    if "solver" in cascade.get_params():
        # Mini-batches do not repeat; many iterations would let rounding grow.
        cascade.set_params(solver="lbfgs", max_iter=8)
    weighted = clone(cascade).fit(train, Y, sample_weight=repeat)
    rows = np.repeat(np.arange(180), repeat)
    cascade.set_params(cv=PredefinedSplit(HELD[rows]))
    repeated = cascade.fit(train[rows], Y[rows])
    np.testing.assert_allclose(
        weighted.stage_probabilities(train),
        repeated.stage_probabilities(train),
        rtol=1e-5,
    )
    same(
        weighted.predict(train, return_depth=True),
        repeated.predict(train, return_depth=True),
    )


def another_point_is_another_fit(make, value):
    train, test = features()
    moved = make(input="features", cv=FIXED).fit(train, Y)
    fresh = make(input="features", cv=FIXED, **{moved.knob: value}).fit(train, Y)
    before = moved.exit_depth(test)
    curve = operating_curve(moved, test, TEST_Y, [value])
    same([moved.exit_depth(test)], [before])
    assert moved.set_operating_point(value) is moved
    assert not np.array_equal(moved.exit_depth(test), before)
    same([moved.predict_proba(test)], [fresh.predict_proba(test)])
    np.testing.assert_allclose(curve.flops_reduction, [moved.flops_reduction(test)])


def folds_calibrate_out_of_fold(make, value):
    train, test = features()
    folds = make(input="features", cv=3).fit(train, Y)
    assert folds.calibration_.answers.n_samples == 180
    # What the first fold was told is what a cascade says that never saw it.
    _, held = next(StratifiedKFold(3).split(train, Y))
    first = np.where(np.isin(np.arange(180), held), 0, -1)
    alone = make(input="features", cv=PredefinedSplit(first)).fit(train, Y)
    np.testing.assert_allclose(
        folds.calibration_.answers.confidence[0, held],
        alone.calibration_.answers.confidence[0],
        rtol=1e-5,
    )
    assert folds.score(test, TEST_Y) > 0.6


def pickles(make, value):
    train, test = features()
    fitted = make(input="features", cv=FIXED).fit(train, Y)
    copy = pickle.loads(pickle.dumps(fitted))
    same(
        copy.set_operating_point(value).predict(test, return_depth=True),
        fitted.set_operating_point(value).predict(test, return_depth=True),
    )
    same([copy.depth_costs_], [fitted.depth_costs_])


def labels_may_be_strings(make, value):
    train, test = features()
    names = np.array(["ant", "bee", "zebra"])
    by_code = make(input="features", cv=FIXED).fit(train, Y)
    by_name = make(input="features", cv=FIXED).fit(train, names[Y])
    same([by_name.predict(test)], [names[by_code.predict(test)]])
    assert by_name.classes_.tolist() == names.tolist()


CHECKS = (
    staged_is_vectorised,
    integer_weights_are_repetition,
    another_point_is_another_fit,
    folds_calibrate_out_of_fold,
    pickles,
    labels_may_be_strings,
)
