"""Noticing without labels that data are no longer those of a reference."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._cascade_prediction import CascadePrediction
from sk_calex.cascade._prediction import first_stage, predict_details
from sk_calex.cascade._run_on_samples import run_with_exits
from sk_calex.cascade._seen_rows import check_rows_are_new
from sk_calex.model_selection._estimators import cascade_in, input_of
from sk_calex.policies import ClassThresholds
from sk_calex.utils._codec import savable
from sk_calex.utils._saving import SavableMixin, plain_seed

from ._change_detection import (
    BETS,
    N_BINS,
    ConformalRanks,
    Curve,
    ShiryaevRoberts,
    confidence_bins,
)

__all__ = ["ExitMonitor"]

_KINDS = 2  # of scores: confidence and predicted class
_WHY_NEW = (
    "a cascade is surer of rows that it was fitted on than of new ones, so that new "
    "ones would look like a change."
)
_STATE = (
    "class_order",
    "reference_confidence",
    "reference_class",
    "confidence",
    "class",
    "sums",
    "counts",
    "key",
    "statistic",
    "watched_stage",
)


@savable
class ExitMonitor(SavableMixin, BaseEstimator):
    """Notice, without labels, that samples no longer look like the reference rows.

    The monitor watches what the first branch says of every sample: its confidence and
    its predicted class. Where no class can exit there, so that its head does not run,
    it is the first stage whose does. It bets against the claim that they are
    exchangeable with those of the reference rows, and raises an alarm where it has won
    too much.

    Parameters
    ----------
    estimator : estimator
        A fitted cascade of any method, or a fitted pipeline, search or
        `ExitRiskController` that holds one.
    mean_time_between_false_alarms : float, default=1e6
        Rows that pass in the mean before an alarm without a change, at least; 1 or
        more. Smaller: changes are noticed sooner.
    random_state : int, RandomState instance or None, default=None
        Seed of the random ranks among equal scores.

    Attributes
    ----------
    alarm_ : bool
        Whether an alarm was raised since `fit` or `reset`; it stays.
    alarm_row_ : int or None
        Number of rows seen when it was raised.
    statistic_ : ndarray of float64, shape (n_points,)
        Course of the statistic, its largest value in each of equal steps; an alarm is
        raised where it reaches `mean_time_between_false_alarms`.
    statistic_rows_ : ndarray of int, shape (n_points,)
        Number of rows seen up to each point.
    n_seen_ : int
        Rows seen since `fit` or `reset`.
    n_reference_ : int
        Reference rows.
    watched_stage_ : int
        Index of the stage that is watched, under the exit rule at `fit`: 0 for the
        first branch, the number of branches for the last stage.

    See Also
    --------
    MonitorDisplay : The course of the statistic as a picture.
    drift_report : What is different, once an alarm was raised.
    ExitRiskController : The certificate that holds for the reference data alone.

    Notes
    -----
    An alarm means that these are not the data of the reference; it does not mean that
    accuracy was lost. No alarm proves nothing: a change that the watched stage does not
    see goes unnoticed.

    Our definition, of known parts. Smoothed conformal p-values of both scores, against
    the reference and all rows seen before (Vovk et al. 2003); classes are ranked by how
    often they were predicted on the calibration rows. With a p-value p the bets are
    ``1 + c (p - 1/2)`` for c in {-1.8, -0.9, 0.9, 1.8}, and ``k p^(k - 1)`` and its
    mirror image for k in {0.3, 0.6}. Each has mean 1 without a change, so that for the
    Shiryaev-Roberts sums ``R <- (R + 1) bet`` the mean of R minus the number of rows
    is 0. The statistic is the larger of the two averages of R over the bets, divided by
    2: with A for `mean_time_between_false_alarms`, an alarm within t rows without a
    change has probability t / A at most.

    The memory does not grow: confidences are counted in 4,096 cells of a fixed grid.

    References
    ----------
    Vovk, V., Nouretdinov, I. & Gammerman, A. (2003). Testing exchangeability on-line.
    ICML.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, ExitMonitor
    >>> X, y = make_classification(3000, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X[:1000], y[:1000])
    >>> monitor = ExitMonitor(cascade, random_state=0).fit(X[1000:2000])
    >>> monitor.update(X[2000:])
    False
    >>> monitor.update(X[2000:] / 10)  # everything near the mean
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "mean_time_between_false_alarms": [Interval(Real, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        mean_time_between_false_alarms: float = 1e6,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.mean_time_between_false_alarms = mean_time_between_false_alarms
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Take the reference: rows of the data that later rows are to be like.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Rows as the estimator takes them, new to the cascade; those that certified
            an `ExitRiskController` are a good choice. A few hundred notice large
            changes, thousands small ones.
        y : None
            Ignored.

        Returns
        -------
        self : ExitMonitor
            The monitor, with nothing seen.

        Raises
        ------
        ValueError
            If a parameter is out of range, or rows were part of the cascade's fit.
        NotFittedError
            If the estimator is not fitted.
        """
        self._validate_params()
        cascade = cascade_in(self.estimator)
        check_is_fitted(cascade)
        check_rows_are_new(
            cascade, input_of(self.estimator, X), "The reference", _WHY_NEW
        )
        self.watched_stage_ = stage = first_stage(cascade, cascade.calibrator_)
        predicted, confidence = self._ask_watched_stage(X)
        known, n_classes = cascade.calibration_, len(cascade.classes_)
        often = np.bincount(known.answers.predicted[stage], known.weight, n_classes)
        # By rows that are neither reference nor seen: an order that followed the
        # reference would treat its rows differently from those to come.
        self._class_order_ = np.argsort(np.argsort(-often, kind="stable"))
        self._reference_ = (
            np.bincount(confidence_bins(confidence), minlength=N_BINS),
            np.bincount(self._class_order_[predicted], minlength=n_classes),
        )
        # A counter-based generator: the numbers of a row depend on its position alone.
        seeds = check_random_state(self.random_state)
        self._key_ = seeds.randint(2**32, size=2, dtype=np.uint64)
        return self.reset()

    def reset(self) -> Self:
        """Forget all rows but the reference, and the alarm.

        Returns
        -------
        self : ExitMonitor
            The monitor as after `fit`.
        """
        check_is_fitted(self, "_reference_")
        self._ranks_ = tuple(ConformalRanks(c.copy()) for c in self._reference_)
        self._sums_ = ShiryaevRoberts(np.zeros((_KINDS, BETS)))
        self._curve_ = Curve()
        self.n_reference_ = int(self._reference_[0].sum())
        self.n_seen_, self.alarm_ = 0, False
        self.alarm_row_: int | None = None
        return self

    def update(self, X: Any) -> bool:
        """Look at more rows; nothing runs beyond the watched stage, or nothing at all.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...), or CascadePrediction
            Rows as the estimator takes them, in the order in which they came. How they
            are cut into calls does not matter. What `predict_details` or `predict_iter`
            of the estimator returned for them does as well, and nothing runs again.

        Returns
        -------
        alarm : bool
            Whether an alarm was raised, now or before.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, is not finite, or is the
            prediction of a cascade with other classes or another first stage.
        """
        check_is_fitted(self, "_reference_")
        if isinstance(X, CascadePrediction):
            return self._note_prediction(X)
        return self._note(*self._ask_watched_stage(X))

    def update_predict(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.intp]]:
        """Answer rows as the estimator does, and look at them on the way.

        It costs no more than `predict`: the watched stage speaks of every row anyway,
        unless the exit rule has changed since the fit and does not need it.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Rows as the estimator takes them.
        return_depth : bool, default=False
            Also return where each row was answered.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels; `alarm_` says whether to trust them.
        depth : ndarray of int, shape (n_samples,)
            Index of the branch that answered, the number of branches for the backbone;
            only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite, or rows exit
            before the watched stage, which no exit rule let them at fit.
        """
        check_is_fitted(self, "_reference_")
        cascade = cascade_in(self.estimator)
        said = predict_details(
            cascade, input_of(self.estimator, X), self.watched_stage_
        )
        self._note_prediction(said)
        return (said.labels, said.depth) if return_depth else said.labels

    @property
    def statistic_(self) -> NDArray[np.float64]:
        """Course of the statistic, shape (n_points,)."""
        check_is_fitted(self, "_reference_")
        return self._curve_.points

    @property
    def statistic_rows_(self) -> NDArray[np.int64]:
        """Rows seen up to each point of `statistic_`, shape (n_points,)."""
        check_is_fitted(self, "_reference_")
        return self._curve_.rows

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return all that the monitor has learned and seen, as plain arrays.

        Returns
        -------
        state : dict of str to ndarray
            For ``np.savez(file, **state)``.
        """
        check_is_fitted(self, "_reference_")
        alarm_row = -1 if self.alarm_row_ is None else self.alarm_row_
        counts = (self.n_seen_, alarm_row, self._curve_.step)
        arrays = (
            self._class_order_,
            *self._reference_,
            *(ranks.counts for ranks in self._ranks_),
            self._sums_.sums,
            np.array(counts, dtype=np.int64),
            self._key_,
            self._curve_.points,
            np.array(self.watched_stage_),
        )
        return {name: array.copy() for name, array in zip(_STATE, arrays, strict=True)}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> Self:
        """Go on where `state_dict` was taken; the monitor need not be fitted.

        Parameters
        ----------
        state : mapping of str to array-like
            What `state_dict` gave, or the file that ``np.load`` opened.

        Returns
        -------
        self : ExitMonitor
            The monitor in that state.

        Raises
        ------
        ValueError
            If something is missing or does not fit this cascade.
        """
        n_classes = len(cascade_in(self.estimator).classes_)
        # Monitors saved before there were others watched the first branch.
        state = {"watched_stage": 0, **{n: state[n] for n in _STATE if n in state}}
        shapes = {
            "watched_stage": (),
            "class_order": (n_classes,),
            "reference_confidence": (N_BINS,),
            "reference_class": (n_classes,),
            "confidence": (N_BINS,),
            "class": (n_classes,),
            "sums": (_KINDS, BETS),
            "counts": (3,),
            "key": (2,),
        }
        arrays = {name: np.array(value) for name, value in state.items()}
        for name in _STATE:
            found = arrays[name].shape if name in arrays else None
            if found is None or shapes.get(name, found) != found:
                raise ValueError(
                    f"state has {'no ' if found is None else ''}{name!r}"
                    f"{'' if found is None else f' of shape {found}'}, which is not "
                    f"that of a monitor of this cascade with {n_classes} classes. Give "
                    "what state_dict returned for the same cascade."
                )
        self._class_order_, self._key_ = arrays["class_order"], arrays["key"]
        self._reference_ = (arrays["reference_confidence"], arrays["reference_class"])
        self.watched_stage_ = int(arrays["watched_stage"])
        self.reset()
        self._ranks_ = tuple(
            ConformalRanks(arrays[name]) for name in ("confidence", "class")
        )
        self._sums_ = ShiryaevRoberts(arrays["sums"])
        self.n_seen_, alarm_row, step = map(int, arrays["counts"])
        self.alarm_ = alarm_row >= 0
        self.alarm_row_ = alarm_row if self.alarm_ else None
        self._curve_ = Curve(arrays["statistic"], step, self.n_seen_)
        return self

    def _archive_state(self) -> dict[str, Any]:
        return {
            "estimator": self.estimator,
            "mean_time_between_false_alarms": self.mean_time_between_false_alarms,
            "random_state": plain_seed(self.random_state),
            "state": self.state_dict(),
        }

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        seen = state.pop("state")
        self.__dict__.update(state)
        self.load_state_dict(seen)

    def _ask_watched_stage(
        self, X: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Class codes and largest probabilities at the watched stage; no later runs."""
        cascade: BaseCascade = cascade_in(self.estimator)
        shape = (len(cascade.branches_), len(cascade.classes_))
        thresholds = np.full(shape, np.inf)
        thresholds[self.watched_stage_ :] = -np.inf  # all rows exit there
        rule = ClassThresholds(thresholds)
        proba, _ = run_with_exits(cascade, input_of(self.estimator, X), rule)
        return proba.argmax(axis=1), proba.max(axis=1)

    def _note_prediction(self, said: CascadePrediction) -> bool:
        known, given = len(self._class_order_), said.probabilities.shape[1]
        if given != known:
            raise ValueError(
                f"X is the prediction of a cascade with {given} classes, but the "
                f"estimator of this monitor has {known}. Give what predict_details of "
                "that estimator returned."
            )
        if said.first_stage != self.watched_stage_:
            raise ValueError(
                f"X tells what stage {said.first_stage} said of every row, but this "
                f"monitor watches stage {self.watched_stage_}: another exit rule lets "
                "other branches answer. Fit the monitor again, after the rule is set."
            )
        return self._note(said.first_predicted, said.first_confidence)

    def _note(
        self, predicted: NDArray[np.intp], confidence: NDArray[np.float64]
    ) -> bool:
        """Add rows to the statistic."""
        n = len(predicted)
        # Each row has a block of four numbers of its own.
        stream = np.random.Philox(key=self._key_, counter=self.n_seen_)
        uniform = np.random.Generator(stream).random((n, 4))
        scores = (confidence_bins(confidence), self._class_order_[predicted])
        p_values = [
            ranks.p_values(score, uniform[:, kind])
            for kind, (ranks, score) in enumerate(
                zip(self._ranks_, scores, strict=True)
            )
        ]
        statistic = self._sums_.update(np.stack(p_values))
        self._curve_.extend(statistic)
        if not self.alarm_:
            high = np.flatnonzero(statistic >= self.mean_time_between_false_alarms)
            if len(high):
                self.alarm_, self.alarm_row_ = True, self.n_seen_ + int(high[0]) + 1
        self.n_seen_ += n
        return self.alarm_
