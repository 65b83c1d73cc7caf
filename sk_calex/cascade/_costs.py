"""Costs of the stages and heads: as counted, given in another unit, or measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sk_calex.branches._as_branch import macs_of
from sk_calex.branches._defaults import warn_of_costly_branches
from sk_calex.calibration._exit_rule import CalibrationSet, Policy
from sk_calex.cascade._inputs import input_batches
from sk_calex.utils._flops import depth_costs
from sk_calex.utils._html import si

__all__ = [
    "Prices",
    "cost_name",
    "cost_unit",
    "depth_prices",
    "measure_costs",
    "price_rows",
    "stage_and_head_macs",
    "warn_of_branch_costs",
    "with_unit",
]


@dataclass(frozen=True)
class Prices:
    """What the stages and the heads of a cascade cost, in one unit.

    Parameters
    ----------
    stages : ndarray of float64, shape (n_branches + 1,)
        Cost of each stage, the last one with the final estimator if any.
    heads : ndarray of float64, shape (n_branches,)
        Cost of each head.
    given : ndarray of float64, shape (n_branches + 1,), or None
        Cost of an answer at each depth, where the user gave no more than that: a head's
        part in it is not known, so that all heads count.
    """

    stages: NDArray[np.float64]
    heads: NDArray[np.float64]
    given: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, cascade: Any) -> Prices:
        """Count MACs, or read the `costs` of a fitted cascade."""
        if cascade.costs is not None:
            return cls.read(cascade.costs, cascade.layout_.n_taps)
        return cls.in_macs(cascade)

    @classmethod
    def in_macs(cls, cascade: Any) -> Prices:
        """Count MACs of a fitted cascade, whatever its `costs`."""
        return cls(*map(np.asarray, stage_and_head_macs(cascade)))

    @classmethod
    def read(cls, costs: Any, n_branches: int) -> Prices:
        """Check and read the parameter `costs`, for a number of branches."""
        if not isinstance(costs, Mapping):
            per_depth = _check_costs(costs, n_branches + 1, "costs")
            nothing = np.zeros(n_branches)
            return cls(np.append(nothing, per_depth[-1]), nothing, per_depth)
        if not {"stages", "heads"} <= set(costs):
            raise ValueError(
                f"costs has the keys {sorted(costs)}; as a dict it needs 'stages' and "
                "'heads', as measure_costs returns them."
            )
        return cls(
            _check_costs(costs["stages"], n_branches + 1, "costs['stages']"),
            _check_costs(costs["heads"], n_branches, "costs['heads']"),
        )

    @property
    def plain(self) -> float:
        """Cost of the last stage without branches."""
        return float(self.stages.sum())

    @property
    def per_depth(self) -> NDArray[np.float64]:
        """Cost of an answer at each depth."""
        if self.given is not None:
            return self.given
        return depth_costs(self.stages, self.heads)

    def of_running(self, heads: NDArray[np.bool_]) -> Prices:
        """Return the same where only these heads run, and the others cost nothing."""
        return replace(self, heads=np.where(heads, self.heads, 0.0))


def depth_prices(
    cascade: Any, rule: Policy | None
) -> tuple[NDArray[np.float64], float]:
    """Return the cost of an answer at each depth, and that of the plain last stage.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade.
    rule : Policy or None
        The fitted exit rule; heads that rest under it cost nothing. None: all heads
        run.

    Returns
    -------
    per_depth : ndarray of float64, shape (n_branches + 1,)
        Cost of an answer at each depth: MACs, or in the unit of its `costs`.
    plain : float
        Cost of the last stage without branches.
    """
    prices = Prices.of(cascade).of_running(cascade._running_heads(rule))
    return prices.per_depth, prices.plain


def price_rows(cascade: Any, given: CalibrationSet, needed: bool) -> CalibrationSet:
    """Put the costs of a cascade on rows that a rule is to be fitted on.

    Where they are not needed and nothing can be counted, the rows stay as they are.
    """
    try:
        prices = Prices.of(cascade)  # once: to count a large forest takes a while
    except ValueError:
        if needed:
            raise
        return given
    if prices.per_depth[-1] == 0 and not needed:
        return given

    def per_depth(rule: Policy | None) -> NDArray[np.float64]:
        return prices.of_running(cascade._running_heads(rule)).per_depth

    # Where torch counts nothing of the network, heads cannot be compared with it.
    plain = prices.plain or None
    return replace(given, costs=prices.per_depth, prices=per_depth, plain_cost=plain)


def stage_and_head_macs(cascade: Any) -> tuple[list[int], list[int]]:
    """Return the MACs per sample of the stages and of the heads.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade.

    Returns
    -------
    stages : list of int
        One per branch and that of the last stage, with the final estimator if any.
    heads : list of int
        One per branch.
    """
    if cascade.layout_.stage_macs is None:
        raise ValueError(
            "the MACs of the backbone's stages are unknown: X carried its layout "
            "in column names only. Give the fitted FrozenBackbone too, as "
            "backbone=FrozenEstimator(backbone) (of sklearn.frozen), which the "
            "clones of a search keep fitted."
        )
    stages = list(cascade.layout_.stage_macs)
    if cascade.final_estimator_ is not None:
        stages[-1] += macs_of(cascade.final_estimator_, "final_estimator")
    return stages, cascade._branch_macs()


def warn_of_branch_costs(cascade: Any) -> None:
    """Warn where the branches of a cascade cost much, unless it has costs given."""
    if cascade.costs is not None:
        return
    try:
        stages, heads = stage_and_head_macs(cascade)
    except ValueError:
        return  # of a kind that cannot be counted: `depth_costs_` says so
    warn_of_costly_branches(heads, stages)


def cost_unit(cascade: Any) -> str:
    """Unit of the costs of a cascade: "MACs", that of its `costs`, or empty."""
    if cascade.costs is None:
        return "MACs"
    return str(cascade.costs.get("unit", "")) if isinstance(cascade.costs, dict) else ""


def cost_name(cascade: Any) -> str:
    """What a cascade saves, in words: "FLOPs", a unit of its own, or "cost"."""
    return "FLOPs" if cascade.costs is None else cost_unit(cascade) or "cost"


def with_unit(cost: float, unit: str) -> str:
    """Write a cost: three digits and its unit; of MACs the thousands have letters.

    Examples
    --------
    >>> from sk_calex.cascade._costs import with_unit
    >>> with_unit(27648, "MACs"), with_unit(0.01234, "ms"), with_unit(5, "")
    ('27.6 k MACs', '0.0123 ms', '5')
    """
    number = si(cost) if unit == "MACs" else f"{cost:.3g}"
    return f"{number} {unit}".rstrip()


def _check_costs(costs: Any, n: int, name: str) -> NDArray[np.float64]:
    values = np.asarray(costs, dtype=np.float64)
    usable = values.shape == (n,) and np.isfinite(values).all() and (values >= 0).all()
    if not usable or (n > 1 and values[-1] == 0 and not values.any()):
        raise ValueError(
            f"{name}={costs!r} must be {n} finite numbers, none negative and not all "
            "zero: one for each "
            + ("branch." if "heads" in name else "branch and one for the last stage.")
        )
    return values


def measure_costs(cascade: Any, X: Any, *, n_repeats: int = 3) -> Bunch:
    """Measure the milliseconds of each stage and head on this machine.

    Every stage and every head runs on all samples, without exits, in batches as at
    prediction.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit: as many as are usually predicted at once, since small
        batches take more time per sample.
    n_repeats : int, default=3
        How often to run; the quickest run counts. One run more comes first, to warm up.

    Returns
    -------
    costs : Bunch
        stages : ndarray of float64, shape (n_branches + 1,)
            Milliseconds per sample of each stage of the backbone, the last one with its
            classifier or the final estimator. 0 where `X` holds features: these are
            computed already.
        heads : ndarray of float64, shape (n_branches,)
            Milliseconds per sample of each branch.
        unit : str
            ``"ms"``.

    Raises
    ------
    ValueError
        If `n_repeats` is below 1, or `X` does not suit the cascade.

    See Also
    --------
    CascadeClassifier : Takes the result as its parameter `costs`.

    Notes
    -----
    Our definition. Elapsed time on the machine as it is: other programs, the batch size
    and the number of threads change it. A staged run also gathers the survivors, which
    is not counted.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, measure_costs
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X, y)
    >>> costs = measure_costs(cascade, X)
    >>> costs.stages.shape, costs.heads.shape, costs.unit
    ((2,), (1,), 'ms')
    >>> cascade.set_params(costs=costs).cost(X).shape
    (500,)
    """
    check_is_fitted(cascade)
    if n_repeats < 1:
        raise ValueError(f"n_repeats={n_repeats!r} must be at least 1.")
    runs = np.array([_time_stages(cascade, X) for _ in range(n_repeats + 1)])[1:]
    stages, heads = runs.min(axis=0)
    # The last stage's answer belongs to it; it has no head.
    stages[-1] += heads[-1]
    return Bunch(stages=stages, heads=heads[:-1], unit="ms")


def _time_stages(cascade: Any, X: Any) -> NDArray[np.float64]:
    """Measure milliseconds per sample of each stage and answer, shape (2, n_stages)."""
    answers, inputs = cascade._answers(), input_batches(cascade, X)
    spent = np.zeros((2, len(answers)))
    with inputs.mode():
        for _, source in inputs.batches:
            said = None
            for stage, answer in enumerate(answers):
                features, seconds = _timed(source.advance, stage)
                spent[0, stage] += seconds
                said, seconds = _timed(answer, features, said)
                spent[1, stage] += seconds
    return spent * 1000 / inputs.n_samples


def _timed(run: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what was only queued has not run yet
    return result, time.perf_counter() - start
