"""The rule that decides at each branch whether going on is worth its cost."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.calibration._answers import Signals
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.utils._codec import savable

from ._learned import regressions_as_data, signals_as_columns

__all__ = ["OptimalStopping"]


@savable
class OptimalStopping(ExitPolicy):
    """Exit where an answer now is expected to be worth more than going on.

    An answer at depth k is worth ``[right] - price * cost(k) / cost(last)``. From the
    last branch to the first, a ridge regression on the confidence, the entropy and the
    gap predicts how much more an exit is worth than going on and exiting by the rules
    found for the later branches. A sample exits where that prediction is not negative.
    Branches are therefore decided jointly: an early branch knows what later ones do.

    Parameters
    ----------
    price : float or "auto", default=0.1
        Accuracy that the whole cost of the last depth is worth, not negative:

        - 0: cost does not count; a sample exits only where a branch is expected to be
          right at least as often as the stages after it.
        - 0.1: saving ten per cent of the cost may lose one answer in a hundred.
        - above 1: nearly all samples exit as early as they can.
        - "auto": the highest that keeps `max_accuracy_drop`, cross-fitted on the rows
          that calibrate.
    regularization : float, default=20
        Weight of the ridge penalty on the squared coefficients, against the sum of
        squares over the calibration rows. Raise it for few or noisy rows; the
        intercept is never penalised.
    max_accuracy_drop : float, default=0.005
        With ``price="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Attributes
    ----------
    regressions_ : list of Pipeline
        The regression of each branch, in cascade order.
    price_ : float
        The price that is used; NaN where "auto" lets nothing exit.
    price_path_ : dict of ndarray
        What "auto" looked at, see `ExitPolicy`; only with "auto".
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Thresholds of the predicted advantage: all 0.

    See Also
    --------
    RegretPriced : One confidence threshold a branch, for the same kind of price.

    Notes
    -----
    Our definition: the backward induction of optimal stopping, with a linear
    regression in place of the unknown expectation, as Longstaff & Schwartz (2001) value
    American options. With ``V = r_K`` and for ``k = K-1, ..., 0``: regress ``r_k - V``
    on the standardised signals over all rows with a weight; where the fit is not
    negative, ``V = r_k``. Costs may be in any unit, since only their ratio to the cost
    of the last depth counts.

    References
    ----------
    Longstaff, F. & Schwartz, E. (2001). Valuing American options by simulation: a
    simple least-squares approach. Review of Financial Studies 14(1), 113-147.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import OptimalStopping
    >>> rng = np.random.default_rng(0)
    >>> proba = rng.dirichlet([1, 1], size=(3, 200))
    >>> y = proba[-1].argmax(axis=1)
    >>> rule = OptimalStopping(0.0).fit(proba, y, costs=[1, 2, 3])
    >>> np.bincount(rule.depth(proba), minlength=3)
    array([  0,   0, 200])
    """

    knob: ClassVar[str] = "price"
    needs_costs: ClassVar[bool] = True
    _per_branch: ClassVar[dict[str, Any]] = {
        **ExitPolicy._per_branch,
        "regressions_": None,
    }
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "price": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "regularization": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        price: float | str = 0.1,
        *,
        regularization: float = 20.0,
        max_accuracy_drop: float = 0.005,
    ) -> None:
        self.price = price
        self.regularization = regularization
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return [0.0, *np.geomspace(0.003, 2, 64).round(4).tolist()]

    def _fit(self, given: CalibrationSet) -> None:
        table, costs = given.answers, given.costs
        if costs is None:
            raise ValueError(
                "costs=None, but OptimalStopping weighs accuracy against cost: give "
                "the cost of each depth, such as a cascade's depth_costs_."
            )
        price = cast(float, self.price)
        rows = np.flatnonzero(given.weight > 0)
        weight = given.weight[rows]
        worth = given.right[:, rows] - price * (costs / costs[-1])[:, None]
        value = worth[-1]
        regressions: list[Pipeline] = []
        for k in range(table.n_stages - 2, -1, -1):
            signals = signals_as_columns(table.stage(k))[rows]
            # One by one: under metadata routing a pipeline passes no weights on that
            # its steps did not request.
            scaler = StandardScaler().fit(signals, sample_weight=weight)
            ridge = Ridge(alpha=self.regularization, solver="cholesky").fit(
                scaler.transform(signals), worth[k] - value, sample_weight=weight
            )
            regressions.append(make_pipeline(scaler, ridge))
            advantage = regressions[-1].predict(signals)
            value = np.where(advantage >= 0, worth[k], value)
        self.regressions_ = regressions[::-1]
        self._set_all(given, 0.0)

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        if len(said.predicted) == 0:
            return np.empty(0)
        advantage: NDArray[np.float64] = self.regressions_[branch].predict(
            signals_as_columns(said)
        )
        return advantage

    def _highest_score(self) -> float | None:
        return np.inf if type(self)._scores is OptimalStopping._scores else None

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": "linear", "branches": regressions_as_data(self.regressions_)}
