"""What exit rules are fitted on, and who exits where under one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import Signals, StageTable
from sk_calex.calibration._thresholds import HAIR, class_precision
from sk_calex.utils._codec import savable

__all__ = [
    "COST_ROUNDING",
    "CalibrationSet",
    "Policy",
    "can_exit",
    "evaluated_branches",
    "first_exits",
    "up_to_last",
]

#: Share of a mean cost that is rounding: sums of costs differ in their last bits.
COST_ROUNDING = 1e-9


class Policy(Protocol):
    """Decides which samples exit at a branch."""

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Mask of the samples that exit at branch number `branch`, which said this."""
        ...


def can_exit(
    thresholds: NDArray[np.float64], highest: float = np.inf
) -> NDArray[np.bool_]:
    """Tell at which branches some class has a threshold that a score can reach.

    Parameters
    ----------
    thresholds : ndarray of float64, shape (n_branches, n_classes)
        Thresholds; ``inf`` never exits.
    highest : float, default=inf
        Upper bound of the scores.

    Returns
    -------
    mask : ndarray of bool, shape (n_branches,)
        True where a sample may exit.
    """
    # A hair more: a bound that was computed may be rounded.
    reached = (thresholds < np.inf) & (thresholds <= highest + HAIR)
    mask: NDArray[np.bool_] = np.logical_or.reduce(reached, axis=1)
    return mask


def up_to_last(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Set a mask of branches before its last True, too.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.calibration._exits import up_to_last
    >>> up_to_last(np.array([False, True, False]))
    array([ True,  True, False])
    """
    filled: NDArray[np.bool_] = np.logical_or.accumulate(mask[::-1])[::-1]
    return filled


def evaluated_branches(policy: Policy | None, n_branches: int) -> NDArray[np.bool_]:
    """Tell which branches have to answer for any rule: all, if it does not say.

    Parameters
    ----------
    policy : Policy or None
        The rule; asked by its `evaluated_branches`, where it has such a method.
    n_branches : int
        Number of branches.

    Returns
    -------
    mask : ndarray of bool, shape (n_branches,)
        False where no sample can exit and nothing later depends on the answer.
    """
    tell: Callable[[], NDArray[np.bool_]] | None
    tell = getattr(policy, "evaluated_branches", None)
    return np.ones(n_branches, dtype=bool) if tell is None else tell()


@savable
@dataclass(frozen=True)
class CalibrationSet:
    """What an exit rule is fitted on: answers, true classes, weights and costs.

    Parameters
    ----------
    answers : StageTable
        Answers of all stages to samples that trained none of them.
    labels : ndarray of intp, shape (n_samples,)
        True class codes.
    weight : ndarray of float64, shape (n_samples,)
        Sample weights.
    costs : ndarray of float64, shape (n_stages,), or None
        Cost of an answer at each depth, all heads running; None where it was not given.
    reference : ndarray of intp, shape (n_samples,), or None
        Class codes that the last stage answers by itself, where its row of `answers`
        is that of an ensemble. None: they are that row.
    skips_unseen : bool, default=False
        Whether a class without a row of positive weight never exits.
    prices : callable or None
        From a fitted rule to the cost of an answer at each depth under it, where idle
        heads do not run. None: `costs` under any rule, or without them the number of
        stages.
    plain_cost : float or None
        Cost of the last stage alone. None: that of the last depth.
    """

    answers: StageTable
    labels: NDArray[np.intp]
    weight: NDArray[np.float64]
    costs: NDArray[np.float64] | None = None
    reference: NDArray[np.intp] | None = None
    skips_unseen: bool = False
    prices: Callable[[Policy], NDArray[np.float64]] | None = None
    plain_cost: float | None = None

    def costs_under(self, rule: Policy | None) -> NDArray[np.float64]:
        """Cost of an answer at each depth under a rule; None: all heads run."""
        if self.prices is not None and rule is not None:
            return self.prices(rule)
        if self.costs is not None:
            return self.costs
        return np.arange(1.0, self.answers.n_stages + 1)

    @property
    def most_to_pay(self) -> float:
        """Mean cost above which the last stage alone is cheaper, but for rounding."""
        plain = self.plain_cost
        if plain is None:
            plain = float(self.costs_under(None)[-1])
        return plain * (1 + COST_ROUNDING)

    def mean_cost(self, rule: Policy) -> float:
        """Mean cost of an answer to these rows by a fitted rule."""
        costs = self.costs_under(rule)[first_exits(rule, self.answers)]
        return float(np.average(costs, weights=self.weight))

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether each stage is right, shape (n_stages, n_samples)."""
        return self.answers.predicted == self.labels

    @cached_property
    def reference_right(self) -> NDArray[np.bool_]:
        """Whether the last stage by itself is right, shape (n_samples,)."""
        if self.reference is None:
            return self.right[-1]
        return self.reference == self.labels

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Whether a class has a row of positive weight, shape (n_classes,)."""
        counts = np.bincount(self.labels, self.weight, self.answers.n_classes)
        return counts > 0

    def select_stages(self, stages: Sequence[int]) -> CalibrationSet:
        """Keep some of the stages, as if there were no others."""
        costs = None if self.costs is None else self.costs[list(stages)]
        return replace(self, answers=self.answers.of_stages(stages), costs=costs)

    @cached_property
    def reference_precision(self) -> NDArray[np.float64]:
        """Precision of the last stage for each predicted class; NaN where unknown."""
        predicted = self.answers.predicted[-1]
        n_classes = self.answers.n_classes
        return class_precision(self.labels, predicted, n_classes, self.weight)


def first_exits(policy: Policy, table: StageTable) -> NDArray[np.intp]:
    """Compute where each sample of a table exits under any rule, fitted or given.

    Parameters
    ----------
    policy : ClassThresholds, ExitPolicy or any object with the same `exits`
        The exit rule.
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
    >>> from sk_calex.calibration import StageTable
    >>> proba = [[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]]
    >>> table = StageTable.from_probabilities(proba)
    >>> first_exits(ClassThresholds(np.array([[0.8, 0.5]])), table)
    array([0, 1])
    """
    depth = np.full(table.n_samples, table.n_stages - 1, dtype=np.intp)
    for k in range(table.n_stages - 2, -1, -1):
        depth[policy.exits(k, table.stage(k))] = k
    return depth
