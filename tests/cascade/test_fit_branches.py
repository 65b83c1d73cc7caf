"""Cascade order against plain loops; how any classifier becomes a branch."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from joblib import Memory, parallel_config
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from sk_calex import TapLayout, effective_sample_size
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.cascade._alignment import SurvivorAlignment
from sk_calex.cascade._branch_fitter import BranchFitter
from sk_calex.cascade._fit_branches import fit_branches
from sk_calex.cascade._training_data import Folds, TrainingData, make_folds
from tests._cascade_models import converged_regression, small_branch
from tests._reference.calibration import slow_class_precision
from tests._reference.cascade import slow_cascade

CLASSES, N = 3, 150
LAYOUT = TapLayout(("a", "b", "c"), ((4,), (5,), (2, 3)), CLASSES, (10, 20, 30, 40))
NO_MEMORY = Memory(None)


def Alignment(kind="soft", margin=0.0, bandwidth=0.1, mixture=1.0, cross_fit=None):
    return SurvivorAlignment(
        kind, margin=margin, bandwidth=bandwidth, mixture=mixture, cross_fit=cross_fit
    )


@dataclass
class Problem:
    """Rows of three taps, each clearer than the one before, and what branches learn."""

    data: TrainingData
    kind: str

    def __getattr__(self, name):
        return getattr(self.data, name)

    @property
    def targets(self):
        return self.final.argmax(axis=1) if self.kind == "argmax" else self.codes

    @property
    def soft(self):
        return self.final if self.kind == "soft" else None

    def of(self, **changes):
        return Problem(replace(self.data, **changes), self.kind)


def problem(targets="labels", weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(N) % CLASSES)
    centres = rng.standard_normal((CLASSES, 15))
    features = centres[y] * np.repeat([0.5, 0.8, 1.2], [4, 5, 6])
    features = features + rng.standard_normal((N, 15))
    logits = 4.0 * np.eye(CLASSES)[y] + 1.5 * rng.standard_normal((N, CLASSES))
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weight = rng.integers(0, 4, N).astype(float) if weighted else np.ones(N)
    X = np.hstack([features, logits]).astype(np.float32)
    return Problem(TrainingData(X, LAYOUT, y, weight, soft, None, None), targets)


def reference_of(given, where):
    """Precision of the last stage on the calibration rows."""
    rows = where.calibration
    return slow_class_precision(
        given.codes[rows], given.final[rows].argmax(axis=1), CLASSES, given.weight[rows]
    )


def calibration_of(given, where, got):
    rows = where.calibration
    return CalibrationSet(got.answers, given.codes[rows], given.weight[rows])


def folds(kind, given):
    """One split, or a partition into three; rows without weight left out."""
    rows = np.flatnonzero(given.weight)
    parts = np.arange(len(rows)) % 3
    pairs = [(rows[parts != p], rows[parts == p]) for p in range(3)]
    return Folds(tuple(pairs[:1] if kind == "split" else pairs))


def fitted(given, where, alignment, template=None, *, min_support=3, n_jobs=None):
    n_branches = given.layout.n_taps
    rule = SurvivorThresholdCalibrator(min_support=min_support)
    return fit_branches(
        replace(given.data, folds=where),
        [converged_regression() if template is None else template] * n_branches,
        given.kind,
        [(None,)] * n_branches,
        alignment,
        np.full(n_branches, alignment.margin),
        rule,
        memory=NO_MEMORY,
        n_jobs=n_jobs,
    )


@pytest.mark.parametrize(
    ("targets", "weighted"), [("soft", True), ("argmax", False), ("labels", True)]
)
@pytest.mark.parametrize("where", ["split", "folds", "cross_fit"])
@pytest.mark.parametrize(
    "alignment",
    [
        Alignment("soft", 0.3, 0.1, 1.0),
        Alignment("soft", 0.1, 0.3, 0.4),
        Alignment("soft", 0.3, 0.0, 1.0),
        Alignment("hard", 0.3, 0.3, 0.4),
        Alignment("none", 0.3, 0.1, 1.0),
    ],
    ids=["soft", "mixed", "sharp", "hard", "none"],
)
def test_cascade_order(alignment, where, weighted, targets):
    """Branches, weights and scores are those of the slow loop."""
    given = problem(targets, weighted)
    split = folds("folds" if where == "folds" else "split", given)
    inner = None
    if where == "cross_fit":
        alignment, train = clone(alignment).set_params(cross_fit=3), split.train
        inner = [
            (train[a], train[b])
            for a, b in StratifiedKFold(3).split(train, given.codes[train])
        ]
    got = fitted(given, split, alignment)
    expected = slow_cascade(
        [LAYOUT.block(given.features, k) for k in range(3)],
        given.codes,
        split.pairs,
        n_classes=CLASSES,
        reference=reference_of(given, split),
        kind=alignment.kind,
        margin=alignment.margin,
        bandwidth=alignment.bandwidth,
        mixture=alignment.mixture,
        min_support=3,
        soft=given.soft,
        targets=given.targets,
        weight=given.weight,
        inner_pairs=inner,
    )
    for k in range(3):
        np.testing.assert_allclose(
            got.branches[k].coef_, expected.branches[k].coef_, rtol=1e-4, atol=1e-6
        )
        size = effective_sample_size(list(expected.weights[k].values()))
        assert got.effective_sample_sizes[k] == pytest.approx(size, rel=1e-5)
    held = calibration_of(given, split, got)
    found = SurvivorThresholdCalibrator(alignment.margin, min_support=3)
    found.fit(held.answers, held.labels, held.weight)
    np.testing.assert_allclose(found.thresholds_, expected.thresholds, rtol=1e-4)
    # The taps were told apart: someone exits, and someone goes on.
    assert 0 < np.isfinite(expected.thresholds).sum()
    assert len(set(expected.weights[-1].values())) > 1 or alignment.kind == "none"


def test_survivors_of_all_branches_before():
    """Of four branches the last is the first to see who left before the third."""
    layout = TapLayout(tuple("abcd"), ((4,), (5,), (3,), (3,)), CLASSES)
    given = problem().of(layout=layout)
    where = folds("split", given)
    got = fitted(given, where, Alignment("soft", 0.3))
    expected = slow_cascade(
        [layout.block(given.features, k) for k in range(4)],
        given.codes,
        where.pairs,
        n_classes=CLASSES,
        reference=reference_of(given, where),
        margin=0.3,
        min_support=3,
    )
    for k in range(4):
        np.testing.assert_allclose(
            got.branches[k].coef_, expected.branches[k].coef_, rtol=1e-4, atol=1e-6
        )


def test_first_branch_sees_all_samples_alike():
    given = problem(weighted=True)
    where = folds("split", given)
    for kind in ("soft", "hard", "none"):
        got = fitted(given, where, Alignment(kind, 0.1))
        size = effective_sample_size(given.weight[where.train])
        assert got.effective_sample_sizes[0] == pytest.approx(size)
    assert got.effective_sample_sizes[2] == pytest.approx(size)  # no alignment at all


def test_later_branches_do_not_change_earlier_ones():
    """Branch k needs nothing of what comes after it."""
    given, alignment = problem("soft"), Alignment("soft", 0.1)
    where = folds("split", given)
    full = fitted(given, where, alignment)
    layout = TapLayout(LAYOUT.names[:2], LAYOUT.shapes[:2], 9)
    two = fitted(given.of(layout=layout), where, alignment)
    for k in range(2):
        np.testing.assert_array_equal(two.branches[k].coef_, full.branches[k].coef_)


def test_survivors_of_fewer_than_two_classes_teach_nothing():
    """Then all samples count alike: of an easy class, or of none, no one is left."""
    # The last stage never predicts class 2, where certainty is then asked for; the
    # others leave at once.
    given = problem()
    given = given.of(final=given.final * [1, 1, 0])
    where = folds("split", given)
    got = fitted(given, where, Alignment("hard", 0.99), min_support=0)
    alike = fitted(given, where, Alignment("none"), min_support=0)
    np.testing.assert_array_equal(got.branches[2].classes_, [0, 1, 2])
    np.testing.assert_allclose(got.branches[2].coef_, alike.branches[2].coef_)
    assert got.effective_sample_sizes[2] == len(where.train)


def test_folds_calibrate_out_of_fold_and_train_on_all():
    """A branch that knows its rows by heart: perfect in sample, poor out of fold."""
    given = problem()
    memorizer = KNeighborsClassifier(1)
    where = folds("folds", given)
    got = fitted(given, where, Alignment("none"), memorizer)
    for branch in got.branches:
        assert branch.n_samples_fit_ == N
        block = LAYOUT.block(given.features, got.branches.index(branch))
        assert branch.score(block, given.codes) == 1
    right = calibration_of(given, where, got).right[:-1].mean(axis=1)
    assert (right < 0.9).all()
    one = fitted(given, folds("split", given), Alignment("none"), memorizer)
    assert one.branches[0].n_samples_fit_ == N - N // 3
    assert one.answers.n_samples == N // 3


def test_cross_fit_scores_are_out_of_fold():
    """In-sample scores are over-confident: fewer training rows seem to survive."""
    given = problem()
    memorizer = KNeighborsClassifier(3)
    where, alignment = folds("split", given), Alignment("hard", 0.4)
    own = fitted(given, where, alignment, memorizer, min_support=1)
    alignment = clone(alignment).set_params(cross_fit=3)
    crossed = fitted(given, where, alignment, memorizer, min_support=1)
    kept = own.branches[0]
    np.testing.assert_array_equal(
        kept._fit_X, crossed.branches[0]._fit_X, err_msg="kept branches see all rows"
    )
    assert own.branches[1].n_samples_fit_ < crossed.branches[1].n_samples_fit_


# -- any classifier --------------------------------------------------------------------


def test_hard_targets_need_no_weights():
    """Where the weights are equal, a classifier without them serves."""
    given = problem("argmax")
    where = folds("split", given)
    got = fitted(given, where, Alignment("none"), KNeighborsClassifier(3))
    expected = KNeighborsClassifier(3).fit(
        LAYOUT.block(given.features, 0)[where.train], given.targets[where.train]
    )
    X = LAYOUT.block(given.features, 0)
    np.testing.assert_array_equal(
        got.branches[0].predict_proba(X), expected.predict_proba(X)
    )
    hard = fitted(given, where, Alignment("hard", 0.6), KNeighborsClassifier(3))
    assert hard.branches[1].n_samples_fit_ < hard.branches[0].n_samples_fit_


@pytest.mark.parametrize(
    ("targets", "alignment"),
    [
        ("soft", Alignment("none")),
        ("labels", Alignment("soft", 0.1)),
    ],
)
def test_a_classifier_without_weights_is_refused_where_it_needs_them(
    targets, alignment
):
    given = problem(targets)
    with pytest.raises(ValueError, match=r"branch=KNeigh.*sample_weight.*argmax"):
        fitted(given, folds("split", given), alignment, KNeighborsClassifier())


def test_soft_targets_are_repeated_rows():
    """Two ways to the same thing for a branch that knows neither."""
    given = problem("soft")
    where = folds("split", given)
    got = fitted(given, where, Alignment("none"), GaussianNB())
    train = where.train
    share = np.where(given.soft[train] >= 0.01, given.soft[train], 0)
    share /= share.sum(axis=1, keepdims=True)
    X = np.repeat(LAYOUT.block(given.features, 0)[train], CLASSES, axis=0)
    labels = np.tile(np.arange(CLASSES), len(train))
    expected = GaussianNB().fit(X, labels, sample_weight=share.ravel())
    np.testing.assert_allclose(got.branches[0].theta_, expected.theta_, rtol=1e-6)


class TemperedRegression(LogisticRegression):
    """A classifier that asks for softer targets."""

    temperature = 4.0


def test_soft_targets_of_any_branch_follow_its_temperature():
    given = problem("soft")
    where = folds("split", given)
    hot = fitted(given, where, Alignment("none"), TemperedRegression())
    cold = fitted(given, where, Alignment("none"))
    X = LAYOUT.block(given.features, 2)
    hot, cold = (f.branches[2].predict_proba(X).max(axis=1).mean() for f in (hot, cold))
    assert hot < cold - 0.05


def test_torch_branches_get_shape_and_soft_targets():
    given = problem("soft")
    where = folds("split", given)
    got = fitted(given, where, Alignment("soft", 0.1), small_branch())
    assert [branch.feature_shape_ for branch in got.branches] == list(LAYOUT.shapes)
    weight = np.zeros(N)
    weight[where.train] = 1
    first = small_branch(feature_shape=(4,)).fit(
        LAYOUT.block(given.features, 0),
        given.codes,
        sample_weight=weight,
        soft_targets=given.soft,
    )
    X = LAYOUT.block(given.features, 0)
    np.testing.assert_allclose(
        got.branches[0].predict_proba(X), first.predict_proba(X), rtol=1e-9
    )


def test_a_branch_may_read_a_tap_in_a_shape_of_its_own():
    given = problem()
    flat = small_branch("gap", feature_shape=(6,))
    layout = TapLayout(("c",), ((2, 3),), 12)
    only = given.of(features=np.roll(given.features, -9, axis=1), layout=layout)
    got = fitted(only, folds("split", given), Alignment("none"), flat)
    branch = got.branches[0]
    assert branch.feature_shape_ == (6,)
    held = folds("split", given).calibration
    np.testing.assert_allclose(
        got.answers.confidence[0],
        branch.predict_proba(only.features[held, :6]).max(axis=1),
        rtol=1e-6,
    )


def test_threads_and_processes_give_the_same():
    given = problem("soft")
    where = folds("folds", given)
    one = fitted(given, where, Alignment("soft", 0.1), small_branch())
    with parallel_config(backend="threading"):
        two = fitted(given, where, Alignment("soft", 0.1), small_branch(), n_jobs=2)
    np.testing.assert_array_equal(one.answers.confidence, two.answers.confidence)
    # What travels to a process, and back.
    fitter = BranchFitter(
        given.data,
        LogisticRegression(),
        0,
        given.weight,
        given.codes,
        given.soft,
        NO_MEMORY,
        "",
    )
    there = pickle.loads(pickle.dumps(fitter))
    back = pickle.loads(pickle.dumps(there.fit_on(where.train)))
    np.testing.assert_array_equal(back.coef_, fitter.fit_on(where.train).coef_)


# -- folds -----------------------------------------------------------------------------


def labels_of(n=30):
    return np.arange(n) % 3, np.ones(n), np.array(["a", "b", "c"])


def make(cv, codes, weight, classes, seed=0, **split_args):
    seeds = np.random.RandomState(seed)
    return make_folds(cv, codes, weight, classes, seeds, split_args)


def test_a_share_is_held_out_stratified():
    codes, weight, classes = labels_of(60)
    split = make(0.25, codes, weight, classes)
    assert len(split.pairs) == 1
    assert np.bincount(codes[split.calibration]).tolist() == [5, 5, 5]
    rows = np.concatenate([split.train, split.calibration])
    assert sorted(rows) == list(range(60))
    same, other = (make(0.25, codes, weight, classes, seed) for seed in (0, 1))
    np.testing.assert_array_equal(same.calibration, split.calibration)
    assert not np.array_equal(other.calibration, split.calibration)


@pytest.mark.parametrize("cv", [0.25, 3, StratifiedKFold(3)], ids=repr)
def test_rows_without_weight_are_in_no_part(cv):
    codes, weight, classes = labels_of(60)
    weight[::5] = 0
    split = make(cv, codes, weight, classes)
    present = set(np.flatnonzero(weight))
    for train, held in split.pairs:
        assert present.issuperset(train)
        assert present.issuperset(held)
    if isinstance(cv, float):
        return
    assert set(split.train) == set(split.calibration) == present


@pytest.mark.parametrize("cv", [0.25, 3])
def test_rows_without_weight_are_not_even_counted(cv):
    codes, weight, classes = labels_of(60)
    weight[::5] = 0
    rows = np.flatnonzero(weight)
    split = make(cv, codes, weight, classes)
    alone = make(cv, codes[rows], weight[rows], classes)
    for pair, other in zip(split.pairs, alone.pairs, strict=True):
        np.testing.assert_array_equal(pair[0], rows[other[0]])
        np.testing.assert_array_equal(pair[1], rows[other[1]])


def test_given_indices_speak_of_all_rows():
    codes, weight, classes = labels_of(30)
    weight[[0, 29]] = 0
    split = make([(np.arange(20), np.arange(20, 30))], codes, weight, classes)
    np.testing.assert_array_equal(split.train, np.arange(1, 20))
    np.testing.assert_array_equal(split.calibration, np.arange(20, 29))
