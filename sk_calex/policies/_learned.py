"""Rules that are learned from what exits gain and lose on calibration samples."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.calibration._answers import Signals
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.calibration._thresholds import just_below, prefix_ends
from sk_calex.utils._codec import savable

__all__ = ["LearnedGate", "RegretPriced"]


@savable
class LearnedGate(ExitPolicy):
    """Exit where a learned gate expects that going on would not help.

    The gate of a branch is a logistic regression on three signals, the confidence, the
    entropy and the gap. It is trained on the calibration samples that reach the branch
    to tell where exiting loses nothing: where the branch is right or the last stage is
    wrong.

    Parameters
    ----------
    threshold : float or "auto", default=0.9
        Exit at this probability of losing nothing, or above. "auto": the lowest that
        keeps `max_accuracy_drop`, cross-fitted on the rows that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``threshold="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Attributes
    ----------
    gates_ : list of Pipeline or None
        The regression of each branch; None where no sample reached it, or all of them
        would lose, or none.
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Thresholds of the scores.

    Notes
    -----
    In the spirit of JEI-DNN (Regol, Chataoui & Coates 2024), whose gates are linear in
    these signals and one more. There gates are trained together with the branches for
    an expected cost; here they are trained afterwards, on samples of their own, and the
    threshold moves along the curve (our definition).

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import LearnedGate
    >>> rng = np.random.default_rng(0)
    >>> proba = rng.dirichlet([1, 1], size=(2, 100))
    >>> y = proba[0].argmax(axis=1) ^ (proba[0].max(axis=1) < 0.7)
    >>> policy = LearnedGate(0.8).fit(proba, y)
    >>> policy.depth(proba).shape
    (100,)
    """

    knob: ClassVar[str] = "threshold"
    _per_branch: ClassVar[dict[str, Any]] = {**ExitPolicy._per_branch, "gates_": None}
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "threshold": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
    }

    def __init__(
        self, threshold: float | str = 0.9, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.threshold = threshold
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return (1 - np.geomspace(1e-4, 0.95, 65)).round(4).tolist()

    def _fit(self, given: CalibrationSet) -> None:
        table, weight, right = given.answers, given.weight, given.right
        self._set_all(given, self.threshold)
        self.gates_: list[Pipeline | None] = []
        reaching = weight > 0
        for k in range(table.n_stages - 1):
            harmless = right[k] | ~right[-1]
            rows = np.flatnonzero(reaching)
            gate = None
            if len(np.unique(harmless[rows])) == 2:
                # One by one: under metadata routing a pipeline passes on no weights
                # that its steps did not request.
                design, own = signals_as_columns(table.stage(k))[rows], weight[rows]
                scaler = StandardScaler().fit(design, sample_weight=own)
                logistic = LogisticRegression(max_iter=1000).fit(
                    scaler.transform(design), harmless[rows], sample_weight=own
                )
                gate = make_pipeline(scaler, logistic)
            else:
                # No sample loses by exiting here, or every one.
                safe = len(rows) > 0 and harmless[rows[0]]
                self.thresholds_[k] = -np.inf if safe else np.inf
            self.gates_.append(gate)
            reaching = reaching & ~self.exits(k, table.stage(k))

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        gate = self.gates_[branch]
        if gate is None:
            return np.full(len(said.predicted), -1.0)
        proba: NDArray[np.float64] = gate.predict_proba(signals_as_columns(said))[:, 1]
        return proba

    def _highest_score(self) -> float | None:
        return 1.0 if type(self)._scores is LearnedGate._scores else None

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": "logistic", "branches": regressions_as_data(self.gates_)}


@savable
class RegretPriced(ExitPolicy):
    """Exit as many as pay: cost saved, at a price, against answers lost.

    At each branch the calibration samples that reach it are sorted by confidence, and
    the prefix that exits is the one with the greatest total of ``price * saved -
    (last stage right - branch right)``, where *saved* is the share of the cost of the
    last depth that an exit here saves.

    Parameters
    ----------
    price : float or "auto", default=0.1
        Accuracy that the whole cost of the last depth is worth: at 0.1 a saving of ten
        per cent may cost one point of accuracy. Not negative; 0 gives up nothing.
        "auto": the highest that keeps `max_accuracy_drop`, cross-fitted on the rows
        that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``price="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Notes
    -----
    Our definition. One threshold a branch, shared by the classes; ties exit together.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import RegretPriced
    >>> proba = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> RegretPriced(0.1).fit(proba, [0, 1], costs=[1, 3]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str] = "price"
    needs_costs: ClassVar[bool] = True
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "price": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self, price: float | str = 0.1, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.price = price
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return [0.0, *np.geomspace(0.001, 10, 64).round(4).tolist()]

    def _fit(self, given: CalibrationSet) -> None:
        table, weight, costs = given.answers, given.weight, given.costs
        if costs is None:
            raise ValueError(
                "costs=None, but RegretPriced weighs accuracy against cost: give the "
                "cost of each depth, such as a cascade's depth_costs_."
            )
        price, saved = cast(float, self.price), 1 - costs / costs[-1]
        right = given.right.astype(np.float64)
        self._set_all(given, np.inf)
        reaching = weight > 0
        for k in range(table.n_stages - 1):
            scores = table.confidence[k]
            order = np.flatnonzero(reaching)[np.argsort(-scores[reaching])]
            gain = weight * (price * saved[k] - (right[-1] - right[k]))
            total = np.cumsum(gain[order])
            ends = prefix_ends(scores[order])
            if len(ends) and total[ends].max() > 0:
                last = ends[np.argmax(total[ends])]
                self.thresholds_[k] = just_below(scores[order], last)
                reaching = reaching & (scores < self.thresholds_[k, 0])


def regressions_as_data(
    regressions: Sequence[Pipeline | None],
) -> list[dict[str, Any] | None]:
    """Describe regressions on scaled signals by their numbers, one for each branch."""

    def numbers(regression: Pipeline) -> dict[str, Any]:
        scaler, linear = (step for _, step in regression.steps)
        return {
            "mean": scaler.mean_.tolist(),
            "scale": scaler.scale_.tolist(),
            "coef": np.ravel(linear.coef_).tolist(),
            "intercept": float(np.ravel(linear.intercept_)[0]),
        }

    return [None if each is None else numbers(each) for each in regressions]


def signals_as_columns(said: Signals) -> NDArray[np.float64]:
    """Stack signals of the samples as regressors, shape (n_samples, 3)."""
    return np.column_stack([said.confidence, said.entropy, said.gap])
