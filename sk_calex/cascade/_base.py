"""What every cascade shares: one fit, one exit rule, the run, and the cost of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
)
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.validation import check_is_fitted

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._as_branch import macs_of, probabilities_of
from sk_calex.calibration._answers import StageAnswer
from sk_calex.calibration._exit_rule import (
    CalibrationSet,
    ExitPolicy,
    Policy,
)
from sk_calex.calibration._exits import evaluated_branches
from sk_calex.calibration._warnings import warn_of_few_rows, warn_without_exits
from sk_calex.cascade._cascade_prediction import CascadePrediction
from sk_calex.cascade._costs import (
    Prices,
    depth_prices,
    price_rows,
    warn_of_branch_costs,
)
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.cascade._fit_cache import SharedFits, recall_or_keep
from sk_calex.cascade._inputs import note_precision, reads_samples
from sk_calex.cascade._knob import (
    check_is_rule,
    check_knob,
    default_of,
    hand_on_drop,
)
from sk_calex.cascade._last_stage import (
    LastStage,
)
from sk_calex.cascade._onnx._answer_modules import AnswerModule, answer_module
from sk_calex.cascade._paying_branches import fit_on_paying_branches
from sk_calex.cascade._plain_input import plain_tags
from sk_calex.cascade._prediction import predict_batches, predict_details
from sk_calex.cascade._read_data import read_training_data
from sk_calex.cascade._recalibrate import calibrate_on_rows, calibrate_with_params
from sk_calex.cascade._run_on_samples import (
    predict_codes,
    run_with_exits,
    stage_probabilities,
)
from sk_calex.cascade._runtime import (
    Answer,
    independent,
)
from sk_calex.cascade._saving import cascade_card, plain_state
from sk_calex.cascade._seen_rows import digest_rows
from sk_calex.cascade._summary import cascade_summary
from sk_calex.cascade._training_data import Folds, TrainingData
from sk_calex.utils._callbacks import CallbackSupportMixin, Task, with_callbacks
from sk_calex.utils._fitted_state import all_or_nothing
from sk_calex.utils._flops import flops_reduction
from sk_calex.utils._html import SummaryMixin
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._saving import SavableMixin
from sk_calex.utils._validation import is_auto

__all__ = ["BaseCascade"]


class BaseCascade(
    CallbackSupportMixin,
    SavableMixin,
    SummaryMixin,
    ClassifierMixin,
    MetaEstimatorMixin,
    BaseEstimator,
):
    """Base of the cascades: fits stages and an exit rule, and runs them.

    A subclass names in `knob` the parameter that moves it along the accuracy-cost
    curve, gives its own exit rule in `_rule`, and trains the branches in `_train`.
    """

    knob: ClassVar[str]
    backbone: Any
    final_estimator: Any
    calibrator: ExitPolicy | None
    costs: Any = None
    #: The next two are of methods that have no such parameter.
    branches: str = "all"
    max_accuracy_drop: float = ExitPolicy.max_accuracy_drop
    cv: Any
    input: str
    random_state: Any
    verbose: int

    backbone_: FrozenBackbone | None
    branches_: list[Any]
    calibration_: CalibrationSet
    calibrator_: ExitPolicy
    classes_: NDArray[Any]
    ensembles_: Ensembles | None = None
    final_estimator_: Any
    layout_: TapLayout
    row_digests_: NDArray[np.uint64] | None
    _last_stage_: LastStage

    # -- what a subclass gives ---------------------------------------------------

    def _rule(self) -> ExitPolicy:
        """Return the method's own exit rule, unfitted, at the value of the knob."""
        raise NotImplementedError

    def _train(self, data: TrainingData, task: Task) -> None:
        """Train the branches; set `branches_`, `calibration_` and `ensembles_`."""
        raise NotImplementedError

    def _check_params(self) -> None:
        """Refuse parameters that `_parameter_constraints` cannot tell."""

    def _check_split(
        self, folds: Folds, codes: NDArray[np.intp], classes: NDArray[Any]
    ) -> None:
        """Refuse parameters that do not suit the split, before the backbone runs."""

    def _check_taps(self, layout: TapLayout) -> None:
        """Refuse parameters that do not suit the taps, before all samples are read."""

    def _readers(self) -> dict[str, list[Any]] | None:
        """Classifiers that read plain 2-D data themselves, by parameter."""
        return None

    def _split_params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what reaches the training, and what only moves a trained cascade."""
        trained = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and not name.endswith("_")
        }
        moves = (self.knob, "max_accuracy_drop", "calibrator", "costs", "branches")
        moved = {name: trained.pop(name) for name in moves if name in trained}
        return trained, moved

    def _of_taps(self, taps: Sequence[int]) -> Self:
        """Return the cascade with some of its branches only, for cached answers."""
        raise TypeError(
            f"{type(self).__name__} trains its branches together, so none of them can "
            "be left out without training the others again. Give a CascadeClassifier, "
            "or fit one cascade for each choice of taps."
        )

    # -- fitting -----------------------------------------------------------------

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Train the branches on one part of the samples, the exit rule on the other.

        A fit that fails or is interrupted leaves the cascade unfitted.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples: images for a backbone, 2-D data without one, or a backbone's
            features with ``input="features"``.
        y : array-like of shape (n_samples,)
            Labels: strings, integers or booleans.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in training and calibration: an integer means repetition, zero
            means absence.
        **params : dict
            Metadata for the ``split`` of `cv`, such as ``groups``, with metadata
            routing.

        Returns
        -------
        self : object
            The fitted cascade.

        Raises
        ------
        ValueError
            If `X`, `y` and the backbone do not fit each other, a value is not finite, a
            class is absent from the training part of the split, or a parameter is out
            of range.
        TypeError
            If `backbone` is not a `FrozenBackbone`, or `final_estimator` no classifier.
        """
        self.__dict__.pop("_shared_fit", None)
        with (
            all_or_nothing(self),
            Task.root(self, 3, X, y, sample_weight) as task,
        ):
            self._validate_params()
            check_knob(self)
            self._exit_rule()._validate_params()
            self._check_params()
            routed = process_routing(self, "fit", **params) if params else None
            split_args = {} if routed is None else routed.splitter.split
            with recall_or_keep(self, X, y, sample_weight, split_args) as known:
                if not known:
                    with task.part("features"):
                        data = read_training_data(self, X, y, sample_weight, split_args)
                    self._train(data, task)
            with (
                task.part("calibration"),
                showing(self.verbose, "calibration"),
                bar(unit="rule", total=1) as shown,
            ):
                self.calibrator_ = self._fit_rule(self._exit_rule())
                shown.update()
            self.row_digests_ = digest_rows(X)
            note_precision(self)
            if not known:  # a recalled fit has said so before
                warn_of_few_rows(self.calibrator_, self.calibration_, self.classes_)
                warn_of_branch_costs(self)
        return self

    # -- the exit rule and its knob ----------------------------------------------

    def _knob_moves(self, calibrator: ExitPolicy) -> bool:
        """Tell whether the cascade's own knob sets that of a calibrator."""
        return False

    @property
    def _knob_name(self) -> str:
        """Parameter that moves the cascade, named as `set_params` takes it."""
        if self.calibrator is None or self._knob_moves(self.calibrator):
            return self.knob
        return f"calibrator__{self.calibrator.knob}"

    def _exit_rule(self, value: Any = None) -> ExitPolicy:
        """Return the exit rule, unfitted, at this or another value of its knob."""
        if self.calibrator is None:
            rule = self._rule()
        else:
            rule = clone(self.calibrator)
            if self._knob_moves(rule):
                rule.set_params(**{rule.knob: getattr(self, self.knob)})
        if value is not None:
            rule.set_params(**{rule.knob: value})
        if is_auto(getattr(rule, rule.knob)):
            hand_on_drop(self, rule)
        return rule

    def _fit_rule(self, rule: ExitPolicy) -> ExitPolicy:
        """Fit an exit rule on what the stages answered to the calibration samples."""
        given = replace(self.calibration_, skips_unseen=True)
        must_pay = is_auto(self.branches)
        if rule.needs_costs or must_pay or is_auto(getattr(rule, rule.knob)):
            given = price_rows(self, given, needed=rule.needs_costs or must_pay)
        return fit_on_paying_branches(rule, given) if must_pay else rule.fit_on(given)

    def _codes_of_last_stage(self, said: StageAnswer) -> NDArray[np.intp]:
        """Class codes that the last stage answers by itself."""
        if self.ensembles_ is None:
            return said.predicted
        return self.ensembles_.own_codes(said)

    def _rule_at(self, value: Any) -> ExitPolicy:
        """Return the fitted exit rule at another value of its knob."""
        return self._fit_rule(self._exit_rule(value))

    def set_calibrator(self, calibrator: ExitPolicy | None) -> Self:
        """Exit by another rule, without training anything.

        Parameters
        ----------
        calibrator : ExitPolicy or None
            A rule, which is cloned and fitted on the calibration samples; becomes the
            parameter `calibrator`. None: the method's own. A knob of the cascade that
            the new rule does not use goes back to its default. The branches keep the
            training weights that they were fitted with.

        Returns
        -------
        self : object
            The same cascade with another exit rule.

        Raises
        ------
        TypeError
            If `calibrator` is not a rule.
        ValueError
            If the rule cannot be fitted.

        Warns
        -----
        CalibrationWarning
            If no class can exit by it at any branch.
        """
        check_is_fitted(self)
        check_is_rule(calibrator)
        changes: dict[str, Any] = {"calibrator": calibrator}
        if calibrator is not None and not self._knob_moves(calibrator):
            changes[self.knob] = default_of(self, self.knob)
        calibrate_with_params(self, changes)
        warn_without_exits(self.calibrator_, self.calibration_)
        return self

    def set_operating_point(self, value: float | Sequence[float] | str) -> Self:
        """Move along the curve without training anything.

        Parameters
        ----------
        value : float, sequence of float or "auto"
            New value of the knob: the parameter named by `knob`, or that of the
            `calibrator` where this decides by another one. Margins may be a sequence
            with one for each branch. "auto": the laxest that keeps
            `max_accuracy_drop` on the calibration samples.

        Returns
        -------
        self : object
            The same cascade with another exit rule.

        Raises
        ------
        ValueError
            If the value is not accepted, or the branches depend on the knob.

        Warns
        -----
        CalibrationWarning
            If no class can exit at any branch at that value.
        """
        check_is_fitted(self)
        self._check_movable()
        if self._knob_name == self.knob:
            calibrate_with_params(self, {self.knob: value})
        else:
            rule = clone(self.calibrator)
            rule.set_params(**{rule.knob: value})
            calibrate_with_params(self, {"calibrator": rule})
        warn_without_exits(self.calibrator_, self.calibration_)
        return self

    def recalibrate(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Let other samples choose the thresholds; nothing is trained.

        For data that have changed since the fit, or where more labels have come in, and
        needed where `amp` of `backbone_` was changed: until then nothing is answered.
        The new samples take the place of the calibration samples, also for later moves.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit, that trained neither backbone nor branches.
        y : array-like of shape (n_samples,)
            True labels, all of them in `classes_`. A class that they lack never exits.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights: an integer means repetition, zero means absence.

        Returns
        -------
        self : object
            The same cascade with other thresholds.

        Raises
        ------
        ValueError
            If a label is unknown, lengths differ, or the exit rule cannot be fitted.
        """
        check_is_fitted(self)
        calibrate_on_rows(self, X, y, sample_weight)
        warn_of_few_rows(self.calibrator_, self.calibration_, self.classes_)
        return self

    def _check_movable(self) -> None:
        """Refuse where another value of the knob would not be another fit."""

    # -- running -----------------------------------------------------------------

    def _running_heads(self, rule: Policy | None) -> NDArray[np.bool_]:
        """Tell which heads run under a rule, shape (n_branches,); None: all of them.

        The others rest: no sample can exit there, and nothing builds on their answers.
        """
        heads = evaluated_branches(rule, self.layout_.n_taps)
        # The ensemble of the last stage takes all branches in.
        return heads if self.ensembles_ is None else np.ones_like(heads)

    def _answers(self) -> list[Answer]:
        """Return the functions that answer, one per stage in cascade order."""
        alone = [*self._branch_answers(), self._last_answer()]
        if self.ensembles_ is None:
            return alone
        return [self.ensembles_.answer(k, stage) for k, stage in enumerate(alone)]

    def _branch_answers(self) -> list[Answer]:
        """Return the functions by which branches answer by themselves."""
        n_classes = len(self.classes_)
        branches = [probabilities_of(branch, n_classes) for branch in self.branches_]
        return [*map(independent, branches)]

    def _answer_modules(self) -> list[AnswerModule]:
        """Return what answers at each branch as modules that can be exported."""
        return [
            answer_module(branch, f"branch {k}")
            for k, branch in enumerate(self.branches_)
        ]

    def _last_answer(self) -> Answer:
        return independent(self._last_stage_.probabilities())

    def predict(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.intp]]:
        """Answer every sample at the first branch whose exit rule is met.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit: images for a backbone, or its features with
            ``input="features"``.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels as in `classes_`.
        depth : ndarray of int, shape (n_samples,)
            Index of the branch that answered, the number of branches for the backbone;
            only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        codes, depth = predict_codes(self, X, self.calibrator_)
        labels = self.classes_[codes]
        return (labels, depth) if return_depth else labels

    def predict_proba(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Compute probabilities by the branch that answers each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Columns as in `classes_`. Rows come from different branches, so compare
            classes within a row rather than rows with each other.
        depth : ndarray of int, shape (n_samples,)
            Index of the branch that answered, the number of branches for the backbone;
            only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        proba, depth = run_with_exits(self, X, self.calibrator_)
        return (proba, depth) if return_depth else proba

    def predict_details(self, X: Any) -> CascadePrediction:
        """Compute labels, probabilities, depths and costs in one run.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        prediction : CascadePrediction
            With the attributes `labels`, `probabilities`, `depth` and `cost`, and what
            the first branch said of every sample, which `ExitMonitor.update` takes.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        return predict_details(self, X)

    def predict_iter(
        self, batches: Iterable[Any], *, batch_size: int = 256
    ) -> Iterator[CascadePrediction]:
        """Answer batches that come one by one, in memory that does not grow.

        Parameters
        ----------
        batches : iterable
            - a list, generator or other iterable of batches: arrays, tensors, dicts of
              them, or lists of paths, each as `X` of `predict`;
            - a `torch.utils.data.DataLoader`. Of batches that are tuples or lists which
              begin with an array, tensor or dict, such as ``(X, y)``, that is taken;
            - a `torch.utils.data.Dataset` or `IterableDataset` of samples or
              ``(sample, label)`` pairs, of which batches are made here.
        batch_size : int, default=256
            Samples in a batch that is made of a Dataset; no other batch is changed.

        Returns
        -------
        predictions : iterator of CascadePrediction
            What `predict_details` returns, for one batch after another; each is
            computed at its first use.

        Raises
        ------
        TypeError
            If `batches` is one array, or cannot be iterated over.
        ValueError
            If a batch does not have the shape seen in fit, or is not finite; a note
            tells which.

        Examples
        --------
        >>> from sklearn.datasets import make_classification
        >>> from sk_calex import CascadeClassifier
        >>> X, y = make_classification(500, n_informative=6, random_state=0)
        >>> cascade = CascadeClassifier(random_state=0).fit(X, y)
        >>> batches = (X[i : i + 100] for i in range(0, 500, 100))
        >>> [len(said.labels) for said in cascade.predict_iter(batches)]
        [100, 100, 100, 100, 100]
        """
        check_is_fitted(self)
        return predict_batches(self, batches, batch_size)

    def stage_probabilities(self, X: Any) -> NDArray[np.float64]:
        """Compute the probabilities of every stage for every sample, without exits.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        proba : ndarray of float64, shape (n_stages, n_samples, n_classes)
            Of the branches in cascade order and of the last stage: what the rules of
            `sk_calex.policies` are fitted on, given samples that trained nothing.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        return stage_probabilities(self, X)

    def exit_depth(self, X: Any) -> NDArray[np.intp]:
        """Compute where each sample is answered.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        depth : ndarray of int, shape (n_samples,)
            Index of the branch, the number of branches for the backbone.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        return predict_codes(self, X, self.calibrator_)[1]

    # -- cost --------------------------------------------------------------------

    @property
    def depth_costs_(self) -> NDArray[np.float64]:
        """Cost of an answer at each depth, shape (n_branches + 1,), heads included.

        MACs, or in the unit of `costs`. A head counts where it runs under the present
        exit rule: not at a branch at which no class can exit.
        """
        check_is_fitted(self)
        return depth_prices(self, self.calibrator_)[0]

    def _branch_macs(self) -> list[int]:
        """Return the MACs of the heads, one per branch."""
        return [macs_of(branch, "branch") for branch in self.branches_]

    def cost(self, X: Any) -> NDArray[np.float64]:
        """Compute what is spent on each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        cost : ndarray of float64, shape (n_samples,)
            MACs (1 MAC = 2 FLOPs) counted by torch, or in the unit of `costs`: the
            stages run, and every head evaluated on the way, the answering one included.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        check_is_fitted(self)
        rule = self.calibrator_  # another thread may move the cascade meanwhile
        return depth_prices(self, rule)[0][predict_codes(self, X, rule)[1]]

    def flops_reduction(self, X: Any) -> float:
        """Compute the share of the plain backbone's FLOPs that is saved on `X`.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        reduction : float
            ``1 - mean cost / cost of the plain backbone``, which has no heads. Negative
            where the heads cost more than the exits save.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        check_is_fitted(self)
        rule = self.calibrator_
        depth = predict_codes(self, X, rule)[1]
        macs = Prices.in_macs(self).of_running(self._running_heads(rule))
        return flops_reduction(depth, macs.stages, macs.heads)

    def cost_reduction(self, X: Any) -> float:
        """Compute the share of the plain last stage's cost that is saved on `X`.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        reduction : float
            ``1 - mean cost / cost of the plain last stage``, in the unit of `costs`;
            without `costs` the same as `flops_reduction`.

        Raises
        ------
        ValueError
            If `costs` is None and the MACs of a stage or head are unknown.
        """
        check_is_fitted(self)
        rule = self.calibrator_
        per_depth, plain = depth_prices(self, rule)
        return float(1 - per_depth[predict_codes(self, X, rule)[1]].mean() / plain)

    # -- scikit-learn ------------------------------------------------------------

    def get_metadata_routing(self) -> MetadataRouter:
        """Return the metadata routing: `sample_weight` to itself, the rest to `cv`.

        Returns
        -------
        routing : MetadataRouter
            The routing.
        """
        router = MetadataRouter(owner=self).add_self_request(self)
        if hasattr(self.cv, "split"):
            mapping = MethodMapping().add(caller="fit", callee="split")
            router.add(splitter=self.cv, method_mapping=mapping)
        return router

    def _summary(self) -> str:
        return cascade_summary(self)

    def __sklearn_clone__(self) -> Self:
        new: Self = super().__sklearn_clone__()
        new._shared_fits = self.__dict__.setdefault("_shared_fits", SharedFits())
        return new

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        for name in ("_shared_fits", "_shared_fit"):
            state.pop(name, None)
        return state

    # -- saving ------------------------------------------------------------------

    def _archive_state(self) -> dict[str, Any]:
        return plain_state(self)

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        self.__setstate__(state)
        self.final_estimator_ = self._last_stage_.estimator
        if self.backbone_ is not None:
            self.backbone = self.backbone_

    def _model_card(self) -> str:
        return cascade_card(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = copy.copy(tags.input_tags)
        tags.input_tags.sparse = tags.input_tags.allow_nan = False
        if reads_samples(self):
            tags.input_tags.two_d_array = False
            tags.input_tags.three_d_array = True
        elif self.input == "samples":
            kinds = plain_tags(self._readers())
            tags.input_tags = dataclasses.replace(tags.input_tags, **kinds)
        return tags
