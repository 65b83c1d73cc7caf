"""What an exit rule is, and the rule of given thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sk_calex.calibration._answers import Signals, StageTable
from sk_calex.calibration._thresholds import HAIR
from sk_calex.utils._validation import check_finite, check_sample_weight

__all__ = ["ClassThresholds", "ExitPolicy", "Policy", "first_exits"]


class Policy(Protocol):
    """Decides who exits at a branch."""

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Mask of the samples that exit at branch number `branch`, which said this."""
        ...


@dataclass(frozen=True)
class ClassThresholds:
    """Exit where the confidence reaches the threshold of the predicted class.

    Parameters
    ----------
    thresholds : ndarray of float64, shape (n_branches, n_classes)
        Thresholds tau; ``inf`` never exits, ``-inf`` always does.

    Notes
    -----
    x exits at the first branch k with ``max p_k(x) >= tau[k, argmax p_k(x)]``, the gate
    of CalexNet (Aperstein & Apartsin 2026). Decided in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import ClassThresholds
    >>> from sk_calex.calibration._answers import StageAnswer
    >>> policy = ClassThresholds(np.array([[0.8, 0.5]]))
    >>> policy.exits(0, StageAnswer(np.array([[0.7, 0.3], [0.4, 0.6]])))
    array([False,  True])
    """

    thresholds: NDArray[np.float64]

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Tell which samples exit at a branch.

        Parameters
        ----------
        branch : int
            Index of the branch, 0 for the first.
        said : Signals
            What that branch said of n samples.

        Returns
        -------
        exits : ndarray of bool, shape (n,)
            Who exits.
        """
        mask: NDArray[np.bool_] = (
            said.confidence >= self.thresholds[branch][said.predicted]
        )
        return mask


@dataclass(frozen=True)
class Calibration:
    """What a rule is fitted on; `costs` is None where none were given."""

    table: StageTable
    labels: NDArray[np.intp]
    weight: NDArray[np.float64]
    costs: NDArray[np.float64] | None

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each stage is right, shape (n_stages, n_samples)."""
        return self.table.predicted == self.labels


class ExitPolicy(BaseEstimator):
    """Base of the exit rules that are fitted on calibration samples.

    A sample exits at the first branch where its score is at least the threshold of the
    branch and of its predicted class, and at the last stage otherwise.

    Attributes
    ----------
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Thresholds of the scores.

    Notes
    -----
    A rule of your own sets `thresholds_` in `_fit`, gives its scores in `_scores` (the
    confidence by default), names in `knob` the parameter that moves along the
    accuracy-cost curve, and says in `needs_costs` whether its fit needs `costs`.

    Examples
    --------
    >>> from sk_calex.policies import ExitPolicy
    >>> class SumOfSignals(ExitPolicy):
    ...     knob = "threshold"
    ...     def __init__(self, threshold=1.0):
    ...         self.threshold = threshold
    ...     def _fit(self, given):  # its table, labels, weight and costs
    ...         self._set_all(given, self.threshold)
    ...     def _scores(self, branch, said):
    ...         return said.confidence + said.gap
    >>> proba = [[[0.7, 0.3], [0.4, 0.6]], [[0.9, 0.1], [0.9, 0.1]]]
    >>> SumOfSignals(1.05).fit(proba, [0, 0]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str]
    needs_costs: ClassVar[bool] = False
    thresholds_: NDArray[np.float64]
    _parameter_constraints: dict[str, list[Any]] = {}

    def fit(
        self,
        answers: StageTable | ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        costs: ArrayLike | None = None,
    ) -> Self:
        """Find the thresholds.

        Parameters
        ----------
        answers : StageTable or array-like of shape (n_stages, n_samples, n_classes)
            Probabilities of the branches, in cascade order, and of the last stage, for
            samples that trained none of them.
        y : array-like of int, shape (n_samples,)
            True class codes, 0 to n_classes - 1.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.
        costs : array-like of shape (n_stages,), default=None
            Cost of an answer at each depth, in any unit. Needed by the rules that
            weigh cost against accuracy.

        Returns
        -------
        self : ExitPolicy
            The fitted rule.

        Raises
        ------
        ValueError
            If a shape does not fit, a value is out of range, or `costs` is needed.
        """
        self._validate_params()
        table = _as_table(answers)
        check_finite(table.confidence, "answers", "Fill in all that the stages say.")
        labels = _check_codes(y, table)
        weight = check_sample_weight(sample_weight, labels)
        prices = None if costs is None else _check_costs(costs, table.n_stages)
        self._fit(Calibration(table, labels, weight, prices))
        return self

    def _fit(self, given: Calibration) -> None:
        """Set `thresholds_`."""
        raise NotImplementedError

    def _set_all(self, given: Calibration, threshold: float) -> None:
        """One threshold for all branches and classes."""
        shape = (given.table.n_stages - 1, given.table.n_classes)
        self.thresholds_ = np.full(shape, float(threshold))

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        return said.confidence

    def scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        """What is compared with the thresholds.

        Parameters
        ----------
        branch : int
            Index of the branch.
        said : Signals
            What that branch said of n samples.

        Returns
        -------
        scores : ndarray of float64, shape (n,)
            Larger: rather exit.
        """
        check_is_fitted(self)
        return self._scores(branch, said)

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Tell which samples exit at a branch.

        Parameters
        ----------
        branch : int
            Index of the branch, 0 for the first.
        said : Signals
            What that branch said of n samples.

        Returns
        -------
        exits : ndarray of bool, shape (n,)
            Who exits. Never where the score is NaN.
        """
        check_is_fitted(self)
        thresholds = self.thresholds_[branch][said.predicted]
        mask: NDArray[np.bool_] = self._scores(branch, said) >= thresholds
        return mask

    def depth(self, answers: StageTable | ArrayLike) -> NDArray[np.intp]:
        """Where each sample is answered.

        Parameters
        ----------
        answers : StageTable or array-like of shape (n_stages, n_samples, n_classes)
            As in fit, for any samples.

        Returns
        -------
        depth : ndarray of intp, shape (n_samples,)
            Index of the branch; the number of branches for the last stage.

        Raises
        ------
        ValueError
            If the stages or classes are not those of fit.
        """
        check_is_fitted(self)
        table = _as_table(answers)
        if (table.n_stages - 1, table.n_classes) != self.thresholds_.shape:
            n_branches, n_classes = self.thresholds_.shape
            raise ValueError(
                f"answers has {table.n_stages} stages and {table.n_classes} classes; "
                f"this rule was fitted on {n_branches + 1} stages and {n_classes} "
                "classes. Give the answers of the same cascade."
            )
        return first_exits(self, table)


def just_below(falling: NDArray[np.float64], last: int) -> float:
    """Threshold that admits the scores up to `last` of a falling sequence, no more.

    A hair below the last one, as with CalexNet's thresholds: the last bits of a score,
    which depend on the size of the batch, cannot flip a calibration sample.
    """
    lower = falling[last + 1] if last + 1 < len(falling) else -np.inf
    gap = min((falling[last] - lower) / 2, HAIR)
    return float(max(falling[last] - gap, np.nextafter(lower, np.inf)))


def prefix_ends(falling: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where a prefix of falling scores may end: ties stay together."""
    return np.flatnonzero(np.diff(falling, append=-np.inf) < 0)


def first_exits(policy: Policy, table: StageTable) -> NDArray[np.intp]:
    """Where each sample of a table exits under any rule, fitted or given.

    Parameters
    ----------
    policy : ClassThresholds, ExitPolicy or any object with the same `exits`
        Who exits at a branch.
    table : StageTable
        What every stage says of the samples.

    Returns
    -------
    depth : ndarray of intp, shape (n_samples,)
        Index of the branch; the number of branches for the last stage.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import ClassThresholds, first_exits
    >>> from sk_calex.calibration._answers import StageTable
    >>> proba = [[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]]
    >>> table = StageTable.from_probabilities(proba)
    >>> first_exits(ClassThresholds(np.array([[0.8, 0.5]])), table)
    array([0, 1])
    """
    depth = np.full(table.n_samples, table.n_stages - 1, dtype=np.intp)
    for k in range(table.n_stages - 2, -1, -1):
        depth[policy.exits(k, table.stage(k))] = k
    return depth


def _as_table(answers: StageTable | ArrayLike) -> StageTable:
    if isinstance(answers, StageTable):
        return answers
    return StageTable.from_probabilities(answers)


def _check_codes(y: ArrayLike, table: StageTable) -> NDArray[np.intp]:
    if table.n_samples == 0:
        raise ValueError("answers holds 0 samples. Give at least one.")
    codes: NDArray[Any] = np.asarray(y)
    if codes.shape != (table.n_samples,) or codes.dtype.kind not in "iu":
        raise ValueError(
            f"y must be {table.n_samples} class codes (int), one for each sample of "
            f"answers, got dtype {codes.dtype} and shape {codes.shape}. Encode labels "
            "with np.searchsorted(classes, labels)."
        )
    if codes.min() < 0 or codes.max() >= table.n_classes:
        raise ValueError(
            f"y must hold codes from 0 to {table.n_classes - 1}, the columns of "
            f"answers; it goes from {codes.min()} to {codes.max()}."
        )
    return codes.astype(np.intp)


def _check_costs(costs: ArrayLike, n_stages: int) -> NDArray[np.float64]:
    prices = np.asarray(costs, dtype=np.float64)
    if (
        prices.shape != (n_stages,)
        or not np.isfinite(prices).all()
        or prices.min() < 0
        or prices[-1] == 0
    ):
        raise ValueError(
            f"costs must be {n_stages} finite numbers, one for each depth, none "
            f"negative and the last one positive, got shape {prices.shape}: {prices}. "
            "A cascade's are its depth_costs_."
        )
    return prices
