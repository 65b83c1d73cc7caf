"""The operating point: accuracy and cost over a method's knob."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import (
    check_consistent_length,
    column_or_1d,
)

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import ExitPolicy, Policy, first_exits
from sk_calex.cascade._alignment import effective_sample_size
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._costs import cost_name, depth_prices
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.utils._validation import check_finite, check_sample_weight

from ._cached_answers import CachedCascade, check_answers
from ._estimators import default_values, knob_of

if TYPE_CHECKING:
    from sk_calex.cascade._cascade import CascadeClassifier

__all__ = ["Outcomes", "Point", "margin_curve", "operating_curve", "pareto_front"]

DEFAULT_MARGINS = (
    *(-0.3, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02),
    *(0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4),
)


def margin_curve(
    cascade: CascadeClassifier,
    X: Any,
    y: ArrayLike,
    *,
    margins: Iterable[float] = DEFAULT_MARGINS,
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Measure accuracy and cost of a fitted cascade at many margins.

    Every stage answers every sample once; the margins then cost a sort each. Nothing is
    trained.

    Parameters
    ----------
    cascade : CascadeClassifier
        A fitted cascade; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit.
    y : array-like of shape (n_samples,)
        True labels.
    margins : iterable of float, default=(-0.3, ..., 0.4)
        Margins, finite and below 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.

    Returns
    -------
    curve : Bunch
        margins, accuracy, flops_reduction : ndarray of float64, shape (n_margins,)
            Accuracy in [0, 1]; share of the plain backbone's FLOPs saved, heads
            included; where the cascade has `costs`, of that cost.
        depth_share : ndarray of float64, shape (n_margins, n_branches + 1)
            Share of the samples answered at each depth.
        backbone_accuracy : float
            Accuracy of the last stage on all samples.
        n_samples : float
            Number of samples; with weights, their effective number (Kish).
        cost_name : str
            What ``flops_reduction`` is a share of: "FLOPs", or for a cascade with
            `costs` their ``"unit"``, such as "ms", or "cost".

    Raises
    ------
    ValueError
        If a margin is not finite or not below 1, the MACs are unknown, or the cascade
        has no margin that can be moved.
    TypeError
        If it is no cascade.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, margin_curve
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X, y)
    >>> curve = margin_curve(cascade, X, y, margins=[-0.1, 0.1])
    >>> curve.depth_share.sum(axis=1)
    array([1., 1.])
    """
    if not isinstance(cascade, BaseCascade):
        raise TypeError(
            f"cascade must be a fitted cascade, got {type(cascade).__name__}. Of a "
            "pipeline give the last step, and X as that gets it."
        )
    knob = knob_of(cascade)
    if knob != "margin":
        given = cascade.calibrator
        rule = "" if given is None else f" of calibrator={given!r}"
        raise ValueError(
            f"this {type(cascade).__name__} moves by {knob!r}{rule}, not by a margin. "
            f"Use operating_curve, over values of {knob.split('__')[-1]!r}."
        )
    cascade._check_movable()
    margins = [float(margin) for margin in margins]
    curve = operating_curve(cascade, X, y, margins, sample_weight=sample_weight)
    return Bunch(margins=curve.pop("knob_values"), **curve)


def operating_curve(
    cascade: BaseCascade | ExitPolicy,
    X: Any,
    y: ArrayLike,
    values: Iterable[Any] | None = None,
    *,
    calibration: Any = None,
    costs: Any = None,
    backbone_cost: float | None = None,
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Measure accuracy and cost over the knob of a cascade, or of a rule on arrays.

    The knob is the parameter that moves a method along the curve: the margin of
    `CascadeClassifier`, or the knob of its `calibrator`; the threshold, quota or
    patience of a baseline. Every stage answers every sample once; nothing is trained.
    With an exit rule in place of a cascade the answers are arrays, from anywhere.

    Parameters
    ----------
    cascade : BaseCascade or ExitPolicy
        - a fitted cascade; not changed;
        - a rule of `sk_calex.policies`, or one of yours, for answers that are cached;
          it is cloned.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in the cascade's fit. For a rule the probabilities of the branches
        in cascade order and of the last stage: an array of shape (n_stages, n_samples,
        n_classes), a list of one array for each stage, or a `StageTable`.
    y : array-like of shape (n_samples,)
        True labels; for a rule class codes, ``0 .. n_classes - 1``.
    values : iterable of float, default=None
        Values of the knob; margins may be sequences, one margin a branch. None: some
        that span the curve.
    calibration : tuple or CalibrationSet, default=None
        With a rule, what it is fitted on at each value: ``(probabilities, y)`` or
        ``(probabilities, y, sample_weight)`` of samples that trained no stage and are
        not in `X`, or the `calibration_` of a cascade. Only rules that learn nothing
        (`SharedThreshold`, `EntropyThreshold`, `Patience`, `OwnGate`) need none.
    costs : array-like of shape (n_stages,) or dict, default=None
        With a rule, the cost of an answer at each depth, heads included and not
        falling, or a dict with ``"stages"`` and ``"heads"``, as `measure_costs` returns
        it; of that a head counts where some class can exit. A cascade has its own.
    backbone_cost : float, default=None
        With a rule, the cost of the plain last stage, without heads, in the same unit.
        None: the last one of `costs`; of a dict the sum of its stages.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.

    Returns
    -------
    curve : Bunch
        knob_values : ndarray of shape (n_values,) or (n_values, n_branches)
            The values.
        accuracy, flops_reduction : ndarray of float64, shape (n_values,)
            Accuracy in [0, 1]; share of the plain backbone's FLOPs saved, heads
            included; where there are `costs`, of that cost.
        depth_share : ndarray of float64, shape (n_values, n_branches + 1)
            Share of the samples answered at each depth.
        backbone_accuracy : float
            Accuracy of the last stage on all samples.
        n_samples : float
            Number of samples; with weights, their effective number (Kish).
        cost_name : str
            What ``flops_reduction`` is a share of: "FLOPs", or where there are `costs`
            their ``"unit"``, such as "ms", or "cost".

    Raises
    ------
    ValueError
        If a value is not accepted by the method, or the MACs are unknown; for a rule,
        if shapes do not fit, an entry is not a probability, a cost is missing, negative
        or below that of an earlier depth, or `calibration` is needed.
    TypeError
        If `cascade` is neither a cascade nor a rule.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, operating_curve
    >>> from sk_calex.policies import SharedThreshold
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(calibrator=SharedThreshold(), random_state=0)
    >>> curve = operating_curve(cascade.fit(X, y), X, y, [0.5, 0.99])
    >>> bool(curve.flops_reduction[0] > curve.flops_reduction[1])
    True

    Of probabilities, labels and costs alone:

    >>> first = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
    >>> last = [[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]
    >>> curve = operating_curve(
    ...     SharedThreshold(), [first, last], [0, 1, 1], [0.5, 0.7], costs=[1, 4]
    ... )
    >>> curve.accuracy.round(3), curve.flops_reduction.round(3)
    (array([0.667, 1.   ]), array([0.75, 0.5 ]))
    """
    if isinstance(cascade, ExitPolicy):
        outcomes = _outcomes_of_arrays(
            cascade, X, y, calibration, costs, backbone_cost, sample_weight
        )
    elif isinstance(cascade, BaseCascade):
        given = {
            "calibration": calibration,
            "costs": costs,
            "backbone_cost": backbone_cost,
        }
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(
                f"{extra[0]} was given, but a cascade has its own. Leave it out, or "
                "give an exit rule and stage probabilities in place of the cascade."
            )
        outcomes = Outcomes.of(cascade, X, y, sample_weight)
    else:
        raise TypeError(
            "cascade must be a fitted cascade or an exit rule of sk_calex.policies, "
            f"got {type(cascade).__name__}. Of a pipeline give the last step, and X as "
            "that gets it."
        )
    if values is None:
        values = default_values(outcomes.cascade)
    values = np.array(list(values))
    points = [outcomes.at(value) for value in values.tolist()]
    return Bunch(
        knob_values=values,
        accuracy=np.array([point.accuracy for point in points]),
        flops_reduction=np.array([point.flops_reduction for point in points]),
        depth_share=np.array([point.depth_share for point in points]),
        backbone_accuracy=outcomes.backbone_accuracy,
        n_samples=outcomes.effective_size,
        cost_name=cost_name(outcomes.cascade),
    )


def _outcomes_of_arrays(
    rule: ExitPolicy,
    answers: Any,
    y: ArrayLike,
    calibration: Any,
    costs: Any,
    backbone_cost: float | None,
    sample_weight: ArrayLike | None,
) -> Outcomes:
    """Collect what cached answers say, with a stand-in for their cascade."""
    table, labels = check_answers(answers, y, "X")
    stand_in = CachedCascade.of(rule, table, labels, calibration, costs)
    if backbone_cost is not None and not 0 < backbone_cost < np.inf:
        raise ValueError(
            f"backbone_cost={backbone_cost!r} must be positive and finite, in the unit "
            "of costs."
        )
    weight = None
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, labels)
    right = table.predicted == labels
    return Outcomes(stand_in, table, right, weight, backbone_cost)


@dataclass(frozen=True)
class Point:
    """An operating point: accuracy, share of the cost saved, share of each depth.

    The cost is in FLOPs, or in the unit of the cascade's `costs`.
    """

    accuracy: float
    flops_reduction: float
    depth_share: NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """A fitted cascade, and which stages are right about which samples.

    Every stage answers every sample once; an operating point then costs a calibration
    and a comparison. `weight` is None or of shape (n_samples,). `backbone_cost` is that
    of the plain last stage, where it is not what the cascade says.
    """

    cascade: Any
    table: StageTable
    right: NDArray[np.bool_]
    weight: NDArray[np.float64] | None
    backbone_cost: float | None = None

    @classmethod
    def of(
        cls,
        cascade: BaseCascade,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Outcomes:
        """Collect the answers of all stages to all samples."""
        truth = column_or_1d(y)
        table = stage_table(cascade, X)
        check_consistent_length(truth, table.predicted[0])
        weight = None
        if sample_weight is not None:
            weight = check_sample_weight(sample_weight, truth)
        right = cascade.classes_[table.predicted] == truth
        return cls(cascade, table, right, weight)

    @property
    def total(self) -> float:
        """Samples, or their total weight."""
        return float(self.table.n_samples if self.weight is None else self.weight.sum())

    @property
    def effective_size(self) -> float:
        """Number of samples; with weights, Kish's effective number."""
        if self.weight is None:
            return float(self.table.n_samples)
        return effective_sample_size(self.weight)

    @property
    def backbone_accuracy(self) -> float:
        """Accuracy of the last stage on all samples."""
        return float(np.average(self.right[-1], weights=self.weight))

    def at(self, value: Any) -> Point:
        """Measure the operating point at a value of the knob, without a change."""
        rule = self.cascade._rule_at(value)
        return self.exiting(first_exits(rule, self.table), rule)

    def exiting(self, depth: NDArray[np.intp], rule: Policy | None = None) -> Point:
        """Measure the operating point where every sample exits at a given depth.

        The heads are those that run under a rule; all of them if there is none.
        """
        costs, plain = depth_prices(self.cascade, rule)
        plain = plain if self.backbone_cost is None else self.backbone_cost
        right = self.right[depth, np.arange(len(depth))]
        share = np.bincount(depth, self.weight, minlength=len(costs)) / self.total
        return Point(
            float(np.average(right, weights=self.weight)),
            float(1 - share @ costs / plain),
            share,
        )

    def of_taps(self, taps: Sequence[int]) -> Outcomes:
        """Return the same of the cascade that has some of its branches only."""
        return replace(
            self,
            cascade=self.cascade._of_taps(taps),
            table=self.table.of_stages([*taps, -1]),
            right=self.right[[*taps, -1]],
        )


def pareto_front(flops_reduction: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Tell which operating points no other point beats.

    Parameters
    ----------
    flops_reduction : array-like of shape (n_points,)
        Share of the plain backbone's FLOPs saved at each point; larger is better.
    accuracy : array-like of shape (n_points,)
        Accuracy at each point; larger is better.

    Returns
    -------
    front : ndarray of bool, shape (n_points,)
        Which points are on the Pareto front. Equal points are on it together.

    Raises
    ------
    ValueError
        If the lengths differ or a value is not finite.

    Notes
    -----
    A point is on the front unless another one is at least as good in both and better in
    one (the usual definition of Pareto efficiency).

    Examples
    --------
    >>> from sk_calex import pareto_front
    >>> pareto_front([0.0, 0.3, 0.2, 0.5], [0.9, 0.88, 0.85, 0.7])
    array([ True,  True, False,  True])
    """
    reduction = column_or_1d(flops_reduction).astype(np.float64)
    right = column_or_1d(accuracy).astype(np.float64)
    check_consistent_length(reduction, right)
    check_finite(reduction, "flops_reduction", "Leave such points out.")
    check_finite(right, "accuracy", "Leave such points out.")
    levels, level = np.unique(-reduction, return_inverse=True)  # the cheapest first
    best = np.full(len(levels), -np.inf)
    np.maximum.at(best, level, right)
    cheaper = np.maximum.accumulate(np.append(-np.inf, best))[:-1]
    front: NDArray[np.bool_] = (right == best[level]) & (right > cheaper[level])
    return front
