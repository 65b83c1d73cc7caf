"""Seed, fit, run and count any scikit-learn classifier as a branch.

The one place that knows torch branches from other classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context, get_config
from sklearn.base import clone, is_classifier
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor

from sk_calex.branches._base import BaseBranch
from sk_calex.branches._input_kinds import describe, name_refusal, takes_missing
from sk_calex.branches._soft_targets import ProbabilityRows, SoftTargets, row_blocks
from sk_calex.branches._training import soften
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._progress import bar
from sk_calex.utils._rows import take_rows
from sk_calex.utils._validation import check_finite, softmax64

__all__ = [
    "Probabilities",
    "as_torch_branch",
    "check_n_branches",
    "clone_for_taps",
    "count_target_classes",
    "fit_as_branch",
    "fit_with_weights",
    "macs_of",
    "probabilities_of",
    "seed_estimator",
    "share_soft_targets",
    "takes_frames",
]

# A repeated row must carry at least this share of its sample to be worth its memory.
_LEAST_SHARE = 0.01

Probabilities = Callable[[Any], NDArray[np.float64]]
"""Features of one stage, (n_samples, *shape), to probabilities (n_samples, C).

A tensor; for classifiers on plain 2-D data also a sparse matrix or a data frame.
"""


def clone_for_taps(
    branch: Any, taps: Sequence[str], seeds: np.random.RandomState
) -> list[Any]:
    """Clone a template for each tap and seed the clones.

    Parameters
    ----------
    branch : classifier or list of classifiers
        One template for all taps, or a list with one for each tap.
    taps : sequence of str
        Names of the taps, in cascade order.
    seeds : RandomState
        Source of the seeds; one is drawn for each tap.

    Returns
    -------
    branches : list of classifiers
        One unfitted clone for each tap. Parameters named `random_state` that were None
        hold a seed, those of nested estimators included.

    Raises
    ------
    ValueError
        If `branch` is a list that does not have one classifier for each tap.
    """
    check_n_branches(branch, taps)
    given = branch if isinstance(branch, list) else [branch] * len(taps)
    branches = []
    for template in given:
        own = clone(template)
        seed_estimator(own, int(seeds.randint(2**31 - 1)))
        branches.append(own)
    return branches


def check_n_branches(branch: Any, taps: Sequence[str]) -> None:
    """Refuse a list of classifiers that does not have one for each tap."""
    if isinstance(branch, list) and len(branch) != len(taps):
        raise ValueError(
            f"branch is a list of {len(branch)} classifiers but there are {len(taps)} "
            f"taps: {list(taps)}. Give one for each tap, or a single one for all."
        )


def seed_estimator(estimator: Any, seed: int) -> None:
    """Set each `random_state` that is None, nested ones included.

    Parameters
    ----------
    estimator : estimator
        Changed in place.
    seed : int
        Seed of the estimator itself, and of the generator that seeds nested ones.
    """
    if estimator.get_params(deep=False).get("random_state", 0) is None:
        estimator.set_params(random_state=seed)
    inner = np.random.RandomState(seed)
    for name, value in sorted(estimator.get_params(deep=True).items()):
        if name.endswith("__random_state") and value is None:
            estimator.set_params(**{name: int(inner.randint(2**31 - 1))})


def as_torch_branch(estimator: Any) -> BaseBranch | None:
    """Return a classifier as the torch branch that it is; None: it is none."""
    return estimator if isinstance(estimator, BaseBranch) else None


def takes_frames(estimator: Any) -> bool:
    """Tell whether a classifier may read data frames as they are: no torch branch."""
    return as_torch_branch(estimator) is None


def share_soft_targets(
    branch: Any,
    y: NDArray[np.intp],
    soft_targets: ProbabilityRows | None,
    alpha: float | None,
) -> tuple[Any, ProbabilityRows | None]:
    """Give soft targets a share of what a classifier learns, and labels the rest.

    Parameters
    ----------
    branch : classifier
        Not changed.
    y : ndarray of int, shape (n_samples,)
        Class codes.
    soft_targets : ProbabilityRows of shape (n_samples, n_classes), or None
        Class probabilities to imitate.
    alpha : float or None
        Share of the soft targets, in [0, 1]. None leaves it to the branch.

    Returns
    -------
    branch : classifier
        A torch branch has a share of its own: a clone with this one. Any other
        classifier as it is.
    soft_targets : ProbabilityRows of shape (n_samples, n_classes), or None
        As given for a torch branch; for any other classifier mixed with the labels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sk_calex.branches._as_branch import share_soft_targets
    >>> y, soft = np.array([0, 1]), np.array([[0.6, 0.4], [0.5, 0.5]])
    >>> share_soft_targets(LogisticRegression(), y, soft, 0.5)[1][:]
    array([[0.8 , 0.2 ],
           [0.25, 0.75]])
    """
    if alpha is None:
        return branch, soft_targets
    if as_torch_branch(branch) is not None:
        return clone(branch).set_params(alpha=alpha), soft_targets
    if soft_targets is None:
        return branch, None
    return branch, SoftTargets(soft_targets, y, alpha=alpha)


def fit_as_branch(
    branch: Any,
    X: Any,
    shape: tuple[int, ...],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    soft_targets: ProbabilityRows | None,
) -> Any:
    """Fit a classifier on one tap, with weights and soft targets.

    A torch branch takes both as they are. Any other classifier gets the rows of
    positive weight; with soft targets, each row is repeated once for each class,
    weighted by the class's probability.

    Parameters
    ----------
    branch : classifier
        Fitted in place.
    X : ndarray of shape (n_samples, n_features)
        Flattened features of the tap; may be a memory map. For classifiers that take
        it also a sparse matrix or a data frame.
    shape : tuple of int
        Shape of one sample's features, for a torch branch that has none of its own.
    y : ndarray of int, shape (n_samples,)
        Class codes.
    sample_weight : ndarray of float64, shape (n_samples,)
        Training weights; a row of weight 0 is absent.
    soft_targets : ProbabilityRows of shape (n_samples, n_classes), or None
        Class probabilities to imitate.

    Returns
    -------
    branch : classifier
        The fitted classifier.

    Raises
    ------
    ValueError
        If the weights differ and `branch` takes none.
    """
    torch_branch = as_torch_branch(branch)
    if torch_branch is not None:
        if torch_branch.feature_shape is None:
            torch_branch.set_params(feature_shape=shape)
        classes, targets = np.unique(y), soft_targets
        if targets is not None and len(classes) < targets.shape[1]:
            # Its outputs are the classes of y, of which the last stage may know more.
            targets = SoftTargets(targets, y, columns=classes)
        return torch_branch.fit(
            X, y, sample_weight=sample_weight, soft_targets=cast(Any, targets)
        )
    rows = np.flatnonzero(sample_weight > 0)
    labels, weight = y[rows], sample_weight[rows]
    if soft_targets is not None:
        repeat, labels, share = _repeat_rows(branch, soft_targets, rows)
        weight = weight[repeat] * share
        rows = rows[repeat]
    with bar(unit="fit", total=1) as shown:
        fitted = fit_with_weights(
            branch,
            _as_matrix(take_rows(X, rows)),
            labels,
            weight,
            "branch",
            "Set targets='argmax' and alignment='hard' or 'none' (soft targets and "
            "soft survivor weights are weights too), or give a branch whose fit takes "
            "them.",
        )
        shown.update()
    return fitted


def _repeat_rows(
    branch: Any, soft: ProbabilityRows, rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Repeat rows once for each class: which row, its class, the class's weight."""
    parts, start = [], 0
    for block in row_blocks(rows):
        share = _class_shares(branch, soft[block])
        repeat, labels = np.nonzero(share)
        parts.append((start + repeat, labels, share[repeat, labels]))
        start += len(block)
    which, codes, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return which, codes, weights


def _as_matrix(X: Any) -> Any:
    """Decode int8 features, of which only torch branches decode a few at a time."""
    return np.asarray(X) if isinstance(X, DecodedFeatures) else X


def count_target_classes(
    branch: Any,
    y: NDArray[np.intp],
    soft_targets: ProbabilityRows | None,
    rows: NDArray[np.intp] | None = None,
) -> int:
    """Count the classes that `fit_as_branch` would train a classifier on.

    Parameters
    ----------
    branch : classifier
        The classifier, fitted or not.
    y : ndarray of int, shape (n_samples,)
        Class codes of the rows of positive weight.
    soft_targets : ProbabilityRows of shape (n_all, n_classes), or None
        Class probabilities to imitate.
    rows : ndarray of intp, shape (n_samples,), default=None
        Which rows of `soft_targets` have positive weight; None: all. They are read
        only where they decide.

    Returns
    -------
    n_classes : int
        Number of distinct classes.
    """
    if soft_targets is None or as_torch_branch(branch) is not None:
        return len(np.unique(y))
    if rows is None:
        rows = np.arange(soft_targets.shape[0])
    found = np.zeros(soft_targets.shape[1], dtype=bool)
    for block in row_blocks(rows):
        found |= (_class_shares(branch, soft_targets[block]) > 0).any(axis=0)
    return int(found.sum())


def _class_shares(branch: Any, soft: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of each class in a row that is repeated once for each class."""
    share: NDArray[np.float64] = soften(soft, getattr(branch, "temperature", 1.0))
    # Where no class has that much, the largest shares count.
    least = np.minimum(_LEAST_SHARE, share.max(axis=1, keepdims=True))
    share = np.where(share >= least, share, 0.0)
    return share / share.sum(axis=1, keepdims=True)


def fit_with_weights(
    estimator: Any,
    X: Any,
    y: NDArray[np.intp],
    weight: NDArray[np.float64],
    role: str,
    advice: str,
) -> Any:
    """Fit a classifier with weights, or without where all are equal and it takes none.

    Equal weights are passed on, too: their size matters to a penalised classifier. A
    pipeline hands them to its last step; its other steps see rows of positive weight
    alike.

    Parameters
    ----------
    estimator : classifier
        Fitted in place.
    X : array, sparse matrix or data frame of shape (n_samples, n_features)
        Features.
    y : ndarray of int, shape (n_samples,)
        Class codes.
    weight : ndarray of float64, shape (n_samples,)
        Weights, positive.
    role : str
        Parameter that holds the classifier, for the message.
    advice : str
        What to do where the weights cannot be passed on, for the message.

    Returns
    -------
    estimator : classifier
        The fitted classifier.

    Raises
    ------
    ValueError
        If the weights differ and the classifier's ``fit`` takes none.
    """
    argument = _weight_argument(estimator)
    weights = {} if argument is None else {argument: weight}
    if weights or np.ptp(weight) == 0:
        # With metadata routing a pipeline would need a request from each of its steps.
        routing = get_config()["enable_metadata_routing"] and argument in weights
        routing = routing and argument == "sample_weight"
        with (
            name_refusal(role, estimator, X),
            config_context(enable_metadata_routing=routing),
        ):
            return estimator.fit(X, y, **weights)
    raise ValueError(
        f"{role}={describe(estimator)} takes no sample_weight, and the weights of its "
        f"samples differ. {advice}"
    )


def _weight_argument(estimator: Any) -> str | None:
    """Name under which `fit` takes sample weights: of a pipeline, its last step's."""
    if has_fit_parameter(estimator, "sample_weight"):
        return "sample_weight"
    if isinstance(estimator, BaseSearchCV):  # hands on what it is given
        return _weight_argument(estimator.estimator)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = _weight_argument(last)
        return None if inner is None else f"{name}__{inner}"
    return None


def probabilities_of(
    estimator: Any, n_classes: int, codes: NDArray[np.intp] | None = None
) -> Probabilities:
    """Return the function that gives a fitted classifier's probabilities.

    Parameters
    ----------
    estimator : classifier
        Fitted on class codes, perhaps on some of the classes only.
    n_classes : int
        Number of all classes.
    codes : ndarray of intp, default=None
        Class code of each of its outputs; None: its `classes_`.

    Returns
    -------
    probabilities : callable
        From features (n_samples, *shape) to float64 probabilities of shape
        (n_samples, n_classes). Classes that the classifier never saw get 0. It raises
        ValueError where features or probabilities are not finite; a NaN in features is
        let through to classifiers that take it.
    """
    if codes is None:
        codes = np.asarray(estimator.classes_, dtype=np.intp)
    name = type(estimator).__name__

    def spread(proba: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(codes) == n_classes:
            return proba
        full = np.zeros((len(proba), n_classes))
        full[:, codes] = proba
        return full

    branch = as_torch_branch(estimator)
    if branch is not None:
        answer, shape = branch.answer_logits, branch.feature_shape_

        def compute_by_head(features: Tensor) -> NDArray[np.float64]:
            # A branch may read the tap in another shape than the tap has.
            logits = answer(features.reshape(-1, *shape))
            return spread(softmax64(logits))

        return compute_by_head

    may_lack = takes_missing(estimator)

    def compute(features: Any) -> NDArray[np.float64]:
        rows = features
        if isinstance(features, Tensor):
            rows = features.flatten(1).cpu().numpy()
            present = rows[~np.isnan(rows)] if may_lack else rows
            check_finite(present, f"the features for {name}", "Scale X.")
        with name_refusal("classifier", estimator, rows):
            proba = estimator.predict_proba(rows)
        proba = np.asarray(proba, dtype=np.float64)
        check_finite(proba, f"the probabilities of {name}", "Scale X.")
        return spread(proba)

    return compute


def macs_of(estimator: Any, role: str) -> int:
    """Count the multiply-accumulates of one answer of a fitted classifier.

    Parameters
    ----------
    estimator : classifier
        Fitted. Pipelines, searches, calibrated, frozen and voting classifiers count
        what they hold.
    role : str
        Parameter that holds the classifier, for the message.

    Returns
    -------
    macs : int
        Its attribute `macs_` where it has one. Otherwise counted from what it learned:
        weights of linear models, of naive Bayes and of neural networks, support vectors
        and stored neighbours by the number of features, and trees by the comparisons
        on the mean path of a training sample.

    Raises
    ------
    ValueError
        If the classifier is of none of these kinds and has no `macs_`.

    Notes
    -----
    Our definition: one comparison in a tree counts as one multiply-accumulate, and
    scaling, kernels' functions and sorting as none, as torch counts no elementwise
    layer.
    """
    macs = _count_learned(estimator)
    if macs is None:
        raise ValueError(
            f"the MACs of {role} {estimator!r} cannot be counted. Set its attribute "
            "macs_ to the multiply-accumulates of one answer."
        )
    return math.ceil(macs)


def _count_learned(estimator: Any) -> float | None:
    """Count MACs by what a fitted estimator holds; None: unknown."""
    if getattr(estimator, "macs_", None) is not None:
        return float(estimator.macs_)
    for name in ("best_estimator_", "calibrated_classifiers_"):
        if hasattr(estimator, name):
            return _sum_counts(np.ravel(getattr(estimator, name)))
    if hasattr(estimator, "steps"):
        return _sum_counts([step for _, step in estimator.steps])
    if hasattr(estimator, "_predictors"):  # histogram-based boosting
        trees = [tree for trees in estimator._predictors for tree in trees]
        return float(sum(_mean_path_of_nodes(tree.nodes) for tree in trees))
    if hasattr(estimator, "estimators_"):  # forests, boosting, bagging, voting
        return _sum_counts(np.ravel(np.asarray(estimator.estimators_, dtype=object)))
    if hasattr(estimator, "tree_"):
        return _mean_path_of_tree(estimator.tree_)
    # The threshold of a binary classifier; then frozen, or one fold of a calibration.
    for name in ("estimator_", "estimator"):
        if hasattr(estimator, name):
            return _count_learned(getattr(estimator, name))
    for name in ("support_vectors_", "_fit_X", "coef_", "components_"):
        if hasattr(estimator, name):
            return float(np.prod(getattr(estimator, name).shape))
    if hasattr(estimator, "coefs_"):
        return float(sum(weights.size for weights in estimator.coefs_))
    for name in ("theta_", "feature_log_prob_"):  # naive Bayes
        if hasattr(estimator, name):
            return float(getattr(estimator, name).size)
    # What neither predicts nor projects scales or selects columns.
    return None if is_classifier(estimator) else 0.0


def _sum_counts(estimators: Iterable[Any]) -> float | None:
    counts = [_count_learned(each) for each in estimators]
    return None if None in counts else float(sum(filter(None, counts)))


def _mean_path_of_tree(tree: Any) -> float:
    """Mean number of comparisons over the samples that a tree was grown on."""
    weight = tree.weighted_n_node_samples
    inner = tree.children_left >= 0
    # Each sample is compared once in each inner node that it passes.
    return float(weight[inner].sum() / weight[0])


def _mean_path_of_nodes(nodes: NDArray[Any]) -> float:
    inner = nodes["is_leaf"] == 0
    return float(nodes["count"][inner].sum() / nodes["count"][0])
