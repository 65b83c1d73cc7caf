"""Rules of given numbers: no statistics, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.calibration._answers import Signals
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import CalibrationSet, can_exit
from sk_calex.utils._codec import savable

__all__ = [
    "ClassThresholds",
    "EntropyThreshold",
    "OwnGate",
    "Patience",
    "SharedThreshold",
]

# Infinity too: all exit at the first branch, or none does. Not NaN.
ANY_NUMBER = Interval(Real, None, None, closed="both")
# Thresholds that "auto" may choose from.
_N_LEVELS = 65


@savable
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
    >>> from sk_calex.calibration import StageAnswer
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
            True for the samples that exit.
        """
        mask: NDArray[np.bool_] = (
            said.confidence >= self.thresholds[branch][said.predicted]
        )
        return mask

    def evaluated_branches(self) -> NDArray[np.bool_]:
        """Tell at which branches some class can exit.

        Returns
        -------
        mask : ndarray of bool, shape (n_branches,)
            False where the head needs not run.
        """
        return can_exit(self.thresholds, highest=1.0)


@savable
class SharedThreshold(ExitPolicy):
    """Exit where the confidence reaches one threshold, the same everywhere.

    Parameters
    ----------
    threshold : float or "auto", default=0.9
        Exit at this score or above. "auto": the lowest that keeps `max_accuracy_drop`,
        cross-fitted on the rows that calibrate.
    score : {"confidence", "gap"}, default="confidence"
        The largest probability, or its lead over the second.
    max_accuracy_drop : float, default=0.005
        With ``threshold="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Notes
    -----
    ``max p >= t``: Shallow-Deep Networks (Kaya et al. 2019) and ZTW (Wolczyk et al.
    2021). The lead of the first over the second is one of CALM's scores (Schuster et
    al. 2022).

    Examples
    --------
    >>> from sk_calex.policies import SharedThreshold
    >>> proba = [[[0.7, 0.3], [0.4, 0.6]], [[0.9, 0.1], [0.9, 0.1]]]
    >>> SharedThreshold(0.65).fit(proba, [0, 0]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str] = "threshold"
    needs_calibration: ClassVar[bool] = False
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "threshold": [ANY_NUMBER, StrOptions({"auto"})],
        "score": [StrOptions({"confidence", "gap"})],
    }

    def __init__(
        self,
        threshold: float | str = 0.9,
        *,
        score: str = "confidence",
        max_accuracy_drop: float = 0.005,
    ) -> None:
        self.threshold = threshold
        self.score = score
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return _observed_levels(self, given)[::-1]

    def _fit(self, given: CalibrationSet) -> None:
        self._set_all(given, self.threshold)

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        return said.gap if self.score == "gap" else said.confidence

    def _highest_score(self) -> float | None:
        return 1.0 if type(self)._scores is SharedThreshold._scores else None

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": self.score}


@savable
class EntropyThreshold(ExitPolicy):
    """Exit where the entropy of the probabilities is small.

    Parameters
    ----------
    threshold : float or "auto", default=0.5
        Exit at this entropy, in nats, or below. "auto": the highest that keeps
        `max_accuracy_drop`, cross-fitted on the rows that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``threshold="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Notes
    -----
    BranchyNet (Teerapittayanon et al. 2016), which requires ``entropy < T``; here the
    threshold itself exits too.

    Examples
    --------
    >>> from sk_calex.policies import EntropyThreshold
    >>> proba = [[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.9, 0.1]]]
    >>> EntropyThreshold(0.5).fit(proba, [0, 0]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str] = "threshold"
    needs_calibration: ClassVar[bool] = False
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "threshold": [ANY_NUMBER, StrOptions({"auto"})],
    }

    def __init__(
        self, threshold: float | str = 0.5, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.threshold = threshold
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return [-level for level in _observed_levels(self, given)[::-1]]

    def _fit(self, given: CalibrationSet) -> None:
        self._set_all(given, -cast(float, self.threshold))

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        return -said.entropy

    def _highest_score(self) -> float | None:
        return 0.0 if type(self)._scores is EntropyThreshold._scores else None

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": "negative_entropy"}


@savable
class Patience(ExitPolicy):
    """Exit where the prediction has not changed for some branches in a row.

    Parameters
    ----------
    patience : int or "auto", default=1
        Exit where the answer was confirmed this many times in a row: 0 is always the
        first branch, 1 needs two equal answers. "auto": the fewest that keep
        `max_accuracy_drop`, cross-fitted on the rows that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``patience="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Notes
    -----
    PABEE (Zhou et al. 2020): the counter of a sample grows where a branch predicts as
    the one before did, and starts again at 0 where it does not.

    Examples
    --------
    >>> from sk_calex.policies import Patience
    >>> proba = [[[0.9, 0.1]], [[0.4, 0.6]], [[0.3, 0.7]], [[0.9, 0.1]]]
    >>> Patience(1).fit(proba, [0]).depth(proba)
    array([2])
    """

    knob: ClassVar[str] = "patience"
    needs_calibration: ClassVar[bool] = False
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "patience": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self, patience: int | str = 1, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.patience = patience
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[int]:
        return list(range(given.answers.n_stages - 2, -1, -1))

    def _fit(self, given: CalibrationSet) -> None:
        needed = cast(int, self.patience) + 1
        self._set_all(given, needed)
        self.thresholds_[: needed - 1] = np.inf  # no streak is as long there

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        return said.streak.astype(np.float64)

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": "streak"}


@savable
class OwnGate(ExitPolicy):
    """Exit where a confidence that the method itself computes is high.

    Parameters
    ----------
    threshold : float or "auto", default=0.5
        Exit at this confidence or above. "auto": the lowest that keeps
        `max_accuracy_drop`, cross-fitted on the rows that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``threshold="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Notes
    -----
    The gate of PTEENet (Lahiany & Aperstein 2022), ``h > 0.5``; here the threshold
    itself exits too.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import OwnGate
    >>> from sk_calex.calibration import StageAnswer, StageTable
    >>> proba = np.array([[0.8, 0.2], [0.6, 0.4]])
    >>> table = StageTable.empty(n_stages=2, n_samples=2, n_classes=2)
    >>> table.put(0, slice(None), StageAnswer(proba, gate=np.array([0.4, 0.7])))
    >>> table.put(1, slice(None), StageAnswer(proba))
    >>> OwnGate().fit(table, [0, 0]).depth(table)
    array([1, 0])
    """

    knob: ClassVar[str] = "threshold"
    needs_calibration: ClassVar[bool] = False
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "threshold": [ANY_NUMBER, StrOptions({"auto"})],
    }

    def __init__(
        self, threshold: float | str = 0.5, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.threshold = threshold
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return _observed_levels(self, given)[::-1]

    def _fit(self, given: CalibrationSet) -> None:
        self._scores(0, given.answers.stage(0))  # refuses a method without one
        self._set_all(given, self.threshold)

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        if said.gate is None:
            raise ValueError(
                f"{type(self).__name__} needs a method that computes a confidence of "
                "its own, such as PTEENetClassifier. Use SharedThreshold."
            )
        return said.gate

    def _highest_score(self) -> float | None:
        return np.inf if type(self)._scores is OwnGate._scores else None

    def _scores_as_data(self) -> dict[str, Any]:
        return {"score": "gate"}


def _observed_levels(rule: ExitPolicy, given: CalibrationSet) -> list[float]:
    """Quantiles of the scores of all branches, rising: what thresholds can tell."""
    rows = given.weight > 0
    n_branches = given.answers.n_stages - 1
    scores = [rule._scores(k, given.answers.stage(k))[rows] for k in range(n_branches)]
    return np.unique(np.quantile(scores, np.linspace(0, 1, _N_LEVELS))).tolist()
