"""What a fitted cascade does on labelled samples, against the required precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import Policy, first_exits
from sk_calex.cascade._alignment import (
    N_BINS,
    TrainingProfile,
    check_weights,
    effective_sample_size,
)
from sk_calex.cascade._cascade import CascadeClassifier
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.model_selection._estimators import cascade_in, input_of
from sk_calex.policies import ClassThresholds
from sk_calex.utils._intervals import share_limits
from sk_calex.utils._validation import check_open_interval, check_sample_weight

__all__ = ["alignment_report", "exit_report"]


def exit_report(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> Bunch:
    """Measure the precision of exits, by depth and predicted class, against its bar.

    Parameters
    ----------
    estimator : cascade, Pipeline or fitted search
        A fitted cascade of any method, or an estimator that ends in one; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in fit. Only samples that neither trained nor calibrated the
        cascade show what it does on new data.
    y : array-like of shape (n_samples,)
        True labels.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.
    confidence_level : float, default=0.95
        Of each interval, taken by itself.

    Returns
    -------
    report : Bunch
        share : ndarray of float64, shape (n_branches + 1, n_classes)
            Share of all samples that each depth answers with each class.
        support : ndarray of float64, shape (n_branches + 1, n_classes)
            Number of these samples, or their weight.
        precision : ndarray of float64, shape (n_branches + 1, n_classes)
            Share of right answers among them; NaN where there are none.
        precision_limits : ndarray of float64, shape (2, n_branches + 1, n_classes)
            Lower and upper confidence limits of `precision` (Clopper & Pearson 1934),
            so that ten samples do not look like a fact; 0 and 1 where there are none.
            Unequal weights count as their effective sample size.
        bar : ndarray of float64, shape (n_branches + 1, n_classes)
            Precision that the thresholds had to reach. With local margins it is
            that of the last stage on the calibration samples that exit, less the
            margin. NaN where the exit rule has no such bar, as at the last stage.
        calibration_precision : ndarray of float64, shape (n_branches + 1, n_classes)
            `precision` on the samples that calibrated the cascade: optimistic, since
            they chose the thresholds.
        depth_share, depth_precision : ndarray of float64, shape (n_branches + 1,)
            Share and accuracy of what each depth answers.
        depth_share_limits, depth_precision_limits : ndarray of float64
            Their confidence limits, of shape (2, n_branches + 1).
        classes : ndarray of shape (n_classes,)
            Labels of the columns.
        depth_names : list of str
            Taps, and "last stage".

    Raises
    ------
    ValueError
        If `X` does not have the shape seen in fit, `y` holds an unknown label, or the
        confidence level does not lie between 0 and 1.
    TypeError
        If there is no cascade in `estimator`.

    See Also
    --------
    ExitDepthDisplay : The shares as a picture.
    ThresholdDisplay : Precision over all thresholds, on the calibration samples.

    Notes
    -----
    Thresholds are empirical: on new data the precision of a class can fall below its
    bar. Of few samples it falls there by chance: read the limits too. Our definition.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, exit_report
    >>> X, y = make_classification(800, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X[:500], y[:500])
    >>> report = exit_report(cascade, X[500:], y[500:])
    >>> report.precision.shape
    (2, 3)
    >>> float(report.share.sum().round(6))
    1.0
    """
    cascade = cascade_in(estimator)
    check_is_fitted(cascade)
    check_open_interval(confidence_level, 0, 1, "confidence_level")
    codes = label_codes(cascade, y)
    weight = check_sample_weight(sample_weight, codes)
    table = stage_table(cascade, input_of(estimator, X))
    check_consistent_length(codes, table.predicted[0])
    exits = _exits(cascade, table, codes, weight)
    held = _exits(
        cascade,
        cascade.calibration_.answers,
        cascade.calibration_.labels,
        cascade.calibration_.weight,
    )
    support = exits[1]
    precision, precision_limits = share_limits(exits, confidence_level)
    by_depth = exits.sum(axis=2)
    depth_precision, depth_limits = share_limits(by_depth, confidence_level)
    of_all = np.repeat(by_depth.sum(axis=1)[:, None], len(support), axis=1)
    of_all[0] = by_depth[1]
    depth_share, depth_share_limits = share_limits(of_all, confidence_level)
    return Bunch(
        share=support / support.sum(),
        support=support,
        precision=precision,
        precision_limits=precision_limits,
        bar=precision_bars_of(cascade),
        calibration_precision=_ratio(held[0], held[1]),
        depth_share=depth_share,
        depth_share_limits=depth_share_limits,
        depth_precision=depth_precision,
        depth_precision_limits=depth_limits,
        classes=cascade.classes_,
        depth_names=depth_names(cascade),
    )


def alignment_report(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    X_train: Any = None,
    y_train: ArrayLike | None = None,
    at: str = "operating_point",
    n_bins: int = 10,
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Measure how far training samples of a branch are from those that reach it.

    The weighted training rows of a branch are compared with the samples of `X` that no
    earlier branch answers, over the true classes and over the confidence of the branch
    before, from which the weights are made.

    Parameters
    ----------
    estimator : cascade, Pipeline or fitted search
        A fitted cascade of any method, or an estimator that ends in one; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in fit, that did not train the cascade.
    y : array-like of shape (n_samples,)
        True labels.
    X_train : array, tensor or Dataset of shape (n_samples, ...), default=None
        The rows that trained the branches: needed by methods that train on all rows
        alike, whose fit keeps nothing of them. Cascades with survivor weights do not
        look at it.
    y_train : array-like of shape (n_samples,), default=None
        Labels of `X_train`.
    at : {"operating_point", "alignment"}, default="operating_point"
        Whose survivors: those of the present exit rule, or those of the thresholds at
        the margin of the alignment that the weights were made for. They differ where
        the cascade's margin is another one, as ``margin="auto"`` chooses it.
    n_bins : int, default=10
        Bins of the confidence, in equal parts from 0 to 1: 1, 2, 4, 5, 10 or 20.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples of `X`.

    Returns
    -------
    report : Bunch
        tv_class, tv_confidence : ndarray of float64, shape (n_branches,)
            Total-variation distance between weighted training rows and survivors, in
            [0, 1]. NaN where no sample survives; over confidence also at the first
            branch, and where the fit did not score the training rows.
        tv_class_unweighted, tv_confidence_unweighted : ndarray, shape (n_branches,)
            The same for the training rows without survivor weights.
        tv_class_noise, tv_confidence_noise : ndarray of float64, shape (n_branches,)
            What is to be expected of samples of these sizes from one distribution: a
            distance of that size says nothing.
        effective_sample_size : ndarray of float64, shape (n_branches,)
            Of the training weights.
        n_train : int
            Training rows.
        n_survivors : ndarray of int, shape (n_branches,)
            Samples of `X` that reach the branch.
        class_share : Bunch
            training, unweighted, survivors : ndarray of shape (n_branches, n_classes),
            whose rows sum to 1.
        confidence_share : Bunch
            The same over confidence, of shape (n_branches, n_bins).
        confidence_edges : ndarray of float64, shape (n_bins + 1,)
            Edges of the bins.
        classes : ndarray of shape (n_classes,)
            Labels.
        branch_names : list of str
            Taps.

    Raises
    ------
    ValueError
        If `X` does not have the shape seen in fit, `y` holds an unknown label, a
        parameter is not accepted, or `X_train` is needed.
    TypeError
        If there is no cascade in `estimator`.

    See Also
    --------
    AlignmentDisplay : The same as a picture.
    effective_sample_size : Its definition.

    Notes
    -----
    Our definition. With shares p of the training rows and q of the survivors, the
    distance is ``sum |p - q| / 2``, and its noise ``sum sqrt(2 / pi * r (1 - r) *
    (1 / n_p + 1 / n_q)) / 2``, where r is the share in both together and the n are
    effective sample sizes.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, alignment_report
    >>> X, y = make_classification(800, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X[:500], y[:500])
    >>> report = alignment_report(cascade, X[500:], y[500:])
    >>> report.n_train, report.n_survivors
    (400, array([300]))
    """
    cascade = cascade_in(estimator)
    check_is_fitted(cascade)
    _check_bins(n_bins)
    policy = _survivor_policy(cascade, at)
    codes = label_codes(cascade, y)
    weight = check_sample_weight(sample_weight, codes)
    profile, sizes = _training(cascade, estimator, X_train, y_train)
    table = stage_table(cascade, input_of(estimator, X))
    check_consistent_length(codes, table.predicted[0])
    depth = first_exits(policy, table)
    reaching = [weight * (depth >= k) for k in range(table.n_stages - 1)]
    before = [None, *table.confidence[: len(reaching) - 1]]
    survivors = TrainingProfile.of(codes, weight, reaching, before, table.n_classes)
    return Bunch(
        **_distances(profile, sizes, survivors, _sizes(reaching), n_bins),
        effective_sample_size=sizes,
        n_train=profile.n_samples,
        n_survivors=np.array([np.count_nonzero(w) for w in reaching]),
        confidence_edges=np.linspace(0, 1, n_bins + 1),
        classes=cascade.classes_,
        branch_names=depth_names(cascade)[:-1],
    )


def distribution_report(
    y_train: ArrayLike,
    weight: ArrayLike,
    y_survivors: ArrayLike,
    train_confidence: ArrayLike | None,
    survivor_confidence: ArrayLike | None,
    n_bins: int,
) -> Bunch:
    """Compute an `alignment_report` of one branch, from its rows."""
    _check_bins(n_bins)
    if (train_confidence is None) != (survivor_confidence is None):
        raise ValueError(
            "train_confidence and survivor_confidence must be given both, or neither."
        )
    labels, reached = column_or_1d(y_train), column_or_1d(y_survivors)
    n = len(labels)
    classes, codes = np.unique(np.r_[labels, reached], return_inverse=True)

    def profile(
        part: NDArray[np.intp], w: NDArray[np.float64], confidence: ArrayLike | None
    ) -> TrainingProfile:
        score = None
        if confidence is not None:
            score = column_or_1d(confidence).astype(np.float64)
            check_consistent_length(part, score)
            if not ((score >= 0) & (score <= 1)).all():  # nor NaN
                raise ValueError("confidences must lie in [0, 1]: they are binned.")
        alike = np.ones(len(part))
        return TrainingProfile.of(part, alike, [w], [score], len(classes))

    given = np.asarray(weight, dtype=np.float64)
    check_weights(given, "weight", labels.shape)
    trained = profile(codes[:n], given, train_confidence)
    survivors = profile(codes[n:], np.ones(len(reached)), survivor_confidence)
    sizes = np.array([effective_sample_size(given)])
    return Bunch(
        **_distances(trained, sizes, survivors, np.array([len(reached)]), n_bins),
        effective_sample_size=sizes,
        n_train=n,
        n_survivors=np.array([len(reached)]),
        confidence_edges=np.linspace(0, 1, n_bins + 1),
        classes=classes,
        branch_names=["given"],
    )


def _distances(
    trained: TrainingProfile,
    sizes: NDArray[np.float64],
    survivors: TrainingProfile,
    counts: NDArray[np.float64],
    n_bins: int,
) -> dict[str, Any]:
    """Compute shares and distances over classes and over confidence."""
    plain = np.broadcast_to(trained.plain_class_weight, trained.class_weight.shape)
    by_class = (trained.class_weight, plain, survivors.class_weight)
    by_confidence = [
        weights.reshape(len(weights), n_bins, -1).sum(axis=2)
        for weights in (
            trained.confidence_weight,
            trained.plain_confidence_weight,
            survivors.confidence_weight,
        )
    ]
    found: dict[str, Any] = {}
    for what, weights in (("class", by_class), ("confidence", by_confidence)):
        p, u, q = (_ratio(w, w.sum(axis=1, keepdims=True)) for w in weights)
        found |= {
            f"tv_{what}": np.abs(p - q).sum(axis=1) / 2,
            f"tv_{what}_unweighted": np.abs(u - q).sum(axis=1) / 2,
            f"tv_{what}_noise": distance_noise(p, q, sizes, counts),
            f"{what}_share": Bunch(training=p, unweighted=u, survivors=q),
        }
    return found


def depth_names(cascade: Any) -> list[str]:
    """Name the depths: the taps, and the last stage."""
    return [*cascade.layout_.names, "last stage"]


def label_codes(cascade: Any, y: ArrayLike) -> NDArray[np.intp]:
    """Return the codes of labels that a fitted cascade knows."""
    labels, classes = column_or_1d(y), cascade.classes_
    known = np.isin(labels, classes)
    if not known.all():
        raise ValueError(
            f"y holds labels that fit never saw: {np.unique(labels[~known])[:5]}. "
            f"The classes are {classes[:5]}{'...' if len(classes) > 5 else ''}."
        )
    return np.searchsorted(classes, labels)


def precision_bars_of(cascade: Any) -> NDArray[np.float64]:
    """Return the required precision of each depth and class; NaN where there is none.

    Shape (n_branches + 1, n_classes).
    """
    answers = cascade.calibration_.answers
    bars = np.full((answers.n_stages, answers.n_classes), np.nan)
    # Other rules require something else than a precision of all that exit.
    bars[:-1] = getattr(cascade.calibrator_, "bars_", np.nan)
    return bars


def _exits(
    cascade: Any,
    table: StageTable,
    codes: NDArray[np.intp],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Sum the weight of right answers and of all, and squares, by depth and class."""
    depth = first_exits(cascade.calibrator_, table)
    answer = table.predicted[depth, np.arange(len(depth))]
    shape = (table.n_stages, table.n_classes)
    sums, right = np.zeros((3, *shape)), weight * (answer == codes)
    for total, w in zip(sums, (right, weight, weight**2), strict=True):
        np.add.at(total, (depth, answer), w)
    return sums


def _survivor_policy(cascade: Any, at: str) -> Policy:
    """Return the rule whose survivors are compared."""
    if at == "operating_point":
        policy: Policy = cascade.calibrator_
        return policy
    if at != "alignment":
        raise ValueError(f"at={at!r} must be 'operating_point' or 'alignment'.")
    if not _weighs(cascade):
        raise ValueError(
            f"at='alignment' needs a cascade with survivor weights, and this "
            f"{type(cascade).__name__} trains on all rows alike. Use "
            "at='operating_point'."
        )
    return ClassThresholds(cascade._alignment_thresholds())


def _weighs(cascade: Any) -> bool:
    """Tell whether the training rows of a cascade have survivor weights."""
    return (
        isinstance(cascade, CascadeClassifier) and cascade._alignment().kind != "none"
    )


def _training(
    cascade: Any, estimator: Any, X_train: Any, y_train: ArrayLike | None
) -> tuple[TrainingProfile, NDArray[np.float64]]:
    """Return the rows that trained the branches, and their effective sample sizes."""
    profile = getattr(cascade, "training_profile_", None)
    if profile is not None and (X_train is None or _weighs(cascade)):
        return profile, cascade.effective_sample_size_
    if X_train is None or y_train is None:
        raise ValueError(
            f"{type(cascade).__name__} trains on all rows alike and keeps nothing of "
            "them. Give X_train and y_train, the rows that trained it."
        )
    codes = label_codes(cascade, y_train)
    table = stage_table(cascade, input_of(estimator, X_train))
    check_consistent_length(codes, table.predicted[0])
    alike, n = np.ones(len(codes)), table.n_stages - 1
    before = [None, *table.confidence[: n - 1]]
    profile = TrainingProfile.of(codes, alike, [alike] * n, before, table.n_classes)
    return profile, np.full(n, float(len(codes)))


def _check_bins(n_bins: int) -> None:
    if n_bins not in (1, 2, 4, 5, 10, 20):
        raise ValueError(
            f"n_bins={n_bins!r} must be 1, 2, 4, 5, 10 or 20: a fit keeps {N_BINS} "
            "bins, which a report can only merge."
        )


def _sizes(weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Compute effective sample sizes; 0 where no sample is left."""
    return np.array([effective_sample_size(w) if w.any() else 0.0 for w in weights])


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Any:
    """Divide a part by the whole; NaN where the whole is 0."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def distance_noise(
    p: NDArray[np.float64],
    q: NDArray[np.float64],
    n_p: NDArray[np.float64],
    n_q: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute the distance to expect of two samples from one distribution."""
    n_p, n_q = n_p[:, None], n_q[:, None]
    r = (n_p * p + n_q * q) / (n_p + n_q)
    # No survivor: q, hence r, is NaN already.
    spread = 1 / n_p + 1 / np.where(n_q > 0, n_q, np.nan)
    noise: NDArray[np.float64] = np.sqrt(2 / np.pi * r * (1 - r) * spread).sum(axis=1)
    return noise / 2
