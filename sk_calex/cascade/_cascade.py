"""CalexNet as a scikit-learn meta-estimator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._as_branch import check_n_branches, clone_for_taps
from sk_calex.branches._defaults import default_branches
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import can_exit
from sk_calex.cascade._alignment import SurvivorAlignment
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._branch_settings import (
    alphas_to_try,
    check_branch_list,
    check_targets,
)
from sk_calex.cascade._ensembles import calibration_of_stages
from sk_calex.cascade._fit_branches import count_trainings, fit_branches
from sk_calex.cascade._last_stage import final_estimator_for
from sk_calex.cascade._training_data import Folds, TrainingData, check_n_folds
from sk_calex.utils._callbacks import Task
from sk_calex.utils._codec import savable
from sk_calex.utils._validation import check_margins, is_auto

__all__ = ["CascadeClassifier"]


@savable
class CascadeClassifier(BaseCascade):
    """A frozen classifier made cheaper by branches that answer the easy samples early.

    Branches are trained on the backbone's tapped features in cascade order. Each is
    trained with weights that follow the samples which reach it, imitates the backbone's
    probabilities, and answers a sample only where its confidence reaches a threshold
    that was calibrated, class by class, on held-out samples that reach it.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier; in a `FrozenEstimator` it is not fitted again. None: `X`
        is plain 2-D data, read by the branches and `final_estimator` themselves (they
        say whether it may be sparse, have missing values or be a data frame with
        categories), or, with ``input="features"``, the output of
        `FrozenBackbone.transform`.
    branch : classifier or list of classifiers, default=None
        Template of the branches, or one for each tap: any classifier with
        `predict_proba`. On plain 2-D data one branch, or as many as the list has. None
        chooses by cost: for maps and tokens the richest `PrototypePoolingClassifier`
        that costs at most a twentieth of what follows its tap, or
        ``BranchClassifier("gap")``; for vectors ``LogisticRegression``.
    final_estimator : classifier, default=None
        Trained on the backbone's outputs and answering in its place: for a backbone
        that never saw the classes. None: the outputs are the classes' logits (for
        plain 2-D data: ``LogisticRegression(max_iter=1000)`` on `X`).
    margin : float, sequence of float or "auto", default="auto"
        How much accuracy an exit may give up against the backbone:

        - "auto": the largest margin whose cascade loses at most `max_accuracy_drop`
          on the calibration samples, cross-fitted, one standard error included, and
          costs no more than the backbone alone. Where none does, nothing exits and a
          `CalibrationWarning` says why. `margin_` is the one found.
        - float: finite, below 1; for a point of your own on the curve. What the
          whole cascade loses depends on the network.
        - sequence of float: one margin for each branch.

        Changed without refitting by `set_margin`. With a `calibrator` that has another
        knob it has no effect, and any other value than the default is an error.
    max_accuracy_drop : float, default=0.005
        With "auto", the accuracy that may be lost against the last stage alone, in
        [0, 1): 0.005 is half a point. Fewer calibration samples than its inverse can
        show no such loss, so that nothing exits.
    calibrator : ExitPolicy, default=None
        The exit rule, fitted on the calibration samples:

        - None: ``SurvivorThresholdCalibrator(margin_mode="local")``, at `margin`;
        - a `SurvivorThresholdCalibrator`: with settings of your own, at `margin` (the
          paper's gate is its ``margin_mode="relative"`` with ``margin=0.2``);
        - any other rule of `sk_calex.policies`: it decides by its own knob.
    alignment : {"soft", "hard", "none"} or SurvivorAlignment, default="soft"
        How later branches are weighted towards the samples that reach them:

        - "soft": by the probability of surviving the earlier branches;
        - "hard": the survivors alone;
        - "none": all samples alike, which trains quickest;
        - a `SurvivorAlignment`: with settings of your own.
    targets : {"soft", "argmax", "labels"}, default="soft"
        What branches learn:

        - "soft": the probabilities of the last stage, which measured best;
        - "argmax": its answers, as the paper's comparison does;
        - "labels": `y`, for branches that should correct a weak backbone.
    alpha : float, sequence of float, "auto" or None, default=None
        Share of the soft targets in what a branch learns; the labels have the rest.
        Used with ``targets="soft"``:

        - None: as each branch says, 0.5 for those of this package.
        - float: in [0, 1], for all branches. 1 imitates the last stage alone, 0 learns
          from `y` alone.
        - sequence of float: one share for each branch.
        - "auto": each branch is trained with 0.5, 1 and 0, and the one with the least
          log-loss on the calibration samples is kept: its own at the temperature that
          fits best, or with `ensemble` that of its stage and of the last one. Three
          trainings for each branch, on features that are computed once.
    ensemble : bool, default=False
        Whether each stage, the last included, answers by a weighted geometric mean of
        its probabilities and those of the branches before, fitted on the calibration
        samples: more accurate. It is then no longer the backbone alone that answers
        what no branch does, and all heads before it run, also where nothing can exit.
    branches : {"all", "auto"}, default="all"
        Which branches answer:

        - "all": each at which the exit rule lets any sample exit.
        - "auto": those that pay. One is left out where the mean cost on the calibration
          samples is lower without it, at the same value of the knob: few exit there,
          and the others pay for its head. The thresholds of those that stay are found
          without it. Where no choice costs less than the backbone alone, nothing exits,
          and a `BranchCostWarning` says so. All are trained; another exit rule may
          choose others.
    cv : float, int or splitter, default=0.2
        Which samples calibrate:

        - float: that share is held out, stratified;
        - splitter with one split (such as ``PredefinedSplit``): one part trains, the
          other calibrates;
        - int, or a splitter that partitions the samples: out-of-fold answers calibrate,
          and the final branches are trained on all samples. For small data.
    costs : array-like of shape (n_branches + 1,) or dict, default=None
        Cost of an answer at each depth, in a unit of your own (milliseconds, money), or
        a dict with ``"stages"`` and ``"heads"`` as `measure_costs` returns it. Where it
        is given, `cost`, searches and rules that weigh cost use it. None: MACs.
    input : {"samples", "features"}, default="samples"
        Whether `X` holds samples or the output of `FrozenBackbone.transform`.
    memory : str or joblib.Memory, default=None
        Where fitted branches are cached, as in `sklearn.pipeline.Pipeline`. Only for a
        folder that no one else can write to: joblib unpickles what lies there.
    n_jobs : int, default=None
        Folds trained at once, by joblib.
    random_state : int, RandomState instance or None, default=None
        Seed of the split and of branches that have none of their own.
    verbose : int, default=0
        1 shows bars on stderr: for the features, each branch with its effective sample
        size, and the calibration. The ``verbose=1`` of a part shows its own alone.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels: those of `y`, or all of ``FrozenBackbone(classes=...)``. A class
        that `y` lacks never exits early.
    branches_ : list of classifiers
        Trained on class codes ``0 .. n_classes - 1``.
    calibrator_ : ExitPolicy
        The fitted exit rule.
    margin_ : float or sequence of float
        The margin that is used; NaN where "auto" lets nothing exit, or no branch pays.
        It and the next are attributes of `calibrator_`, where this has a margin.
    margin_path_ : dict of ndarray
        With "auto", one row for each margin that was tried, from strict to lax:
        margin, n_lost and n_gained (answers lost and gained against the last stage),
        accuracy_drop, standard_error, exit_share, mean_cost, and within (whether
        ``accuracy_drop + standard_error <= max_accuracy_drop``).
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        That of `calibrator_`: score at which a sample predicted as a class exits;
        ``inf`` where disabled.
    enabled_ : ndarray of bool, shape (n_branches, n_classes)
        Whether a class exits at a branch. This and the next three are attributes of
        `calibrator_`, where it is a `SurvivorThresholdCalibrator`.
    precision_, support_ : ndarray of float64, shape (n_branches, n_classes)
        Precision of the exiting calibration samples, NaN where disabled; their weight.
    reference_precision_ : ndarray of float64, shape (n_classes,)
        Precision of the last stage for each predicted class on the calibration samples.
    calibration_ : CalibrationSet
        Answers of all stages to the calibration samples, their labels and weights.
    kept_branches_ : ndarray of bool, shape (n_branches,)
        At which branches some class may exit under the present exit rule.
    alpha_ : list of float or None
        Share of the soft targets that each branch was trained with; None where it is
        the branch's own.
    effective_sample_size_ : ndarray of float64, shape (n_branches,)
        Of the training weights of each branch.
    training_profile_ : TrainingProfile
        Those weights by class and by confidence, for `alignment_report`.
    backbone_, final_estimator_ : object or None
        As given, fitted; the backbone shares the module.
    ensembles_ : Ensembles or None
        Weights of the stages' answers, with `ensemble`.
    layout_ : TapLayout
        Columns of the taps.
    n_features_in_ : int
        Columns of a 2-D `X`, or channels of the samples.

    See Also
    --------
    margin_curve : Accuracy and cost over margins.
    SurvivorThresholdCalibrator : Settings of the thresholds.
    SurvivorAlignment : Settings of the training weights.

    Notes
    -----
    Re-implementation of CalexNet from the published description: importance weights
    (Eq. 13), class-precision margins on survivors (Eq. 8), soft targets (Eq. 10). See
    the Methods page for what is the paper's and what is our definition: the default,
    local margins, is ours. Thresholds are empirical: on new data an exit can cost more.

    Clones share in memory what they train: where only the exit rule differs, branches
    are trained once, and the clones after the first answer `X` that came before without
    running (so time the first). Processes share by `memory`.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sk_calex import CascadeClassifier
    >>> X, y = make_classification(2000, n_informative=6, n_classes=3, random_state=0)
    >>> forest = RandomForestClassifier(random_state=0)  # dearer than a linear branch
    >>> cascade = CascadeClassifier(
    ...     final_estimator=forest, max_accuracy_drop=0.1, random_state=0
    ... ).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> depth.shape
    (2000,)
    >>> bool(cascade.margin_ in cascade.margin_path_["margin"])  # what "auto" found
    True
    >>> _ = cascade.set_margin(0.1)  # no refit
    """

    knob: ClassVar[str] = "margin"
    # The parameter that messages name.
    _margin_of_alignment: ClassVar[str] = "alignment__margin"

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [object, None],
        "branch": [HasMethods(["fit", "predict_proba"]), list, None],
        "final_estimator": [HasMethods(["fit", "predict_proba"]), None],
        "margin": [Real, "array-like", StrOptions({"auto"})],
        "max_accuracy_drop": [Interval(Real, 0, 1, closed="left")],
        "calibrator": [ExitPolicy, None],
        "alignment": [StrOptions({"soft", "hard", "none"}), SurvivorAlignment],
        "targets": [StrOptions({"soft", "argmax", "labels"})],
        "alpha": [
            Interval(Real, 0, 1, closed="both"),
            "array-like",
            StrOptions({"auto"}),
            None,
        ],
        "ensemble": ["boolean"],
        "branches": [StrOptions({"all", "auto"})],
        "cv": ["cv_object", Interval(Real, 0, 1, closed="neither")],
        "costs": ["array-like", dict, None],
        "input": [StrOptions({"samples", "features"})],
        "memory": [str, HasMethods(["cache"]), None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        branch: Any = None,
        final_estimator: Any = None,
        margin: float | Sequence[float] | str = "auto",
        max_accuracy_drop: float = 0.005,
        calibrator: ExitPolicy | None = None,
        alignment: str | SurvivorAlignment = "soft",
        targets: str = "soft",
        alpha: float | Sequence[float] | str | None = None,
        ensemble: bool = False,
        branches: str = "all",
        cv: Any = 0.2,
        costs: Any = None,
        input: str = "samples",
        memory: Any = None,
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.branch = branch
        self.final_estimator = final_estimator
        self.margin = margin
        self.max_accuracy_drop = max_accuracy_drop
        self.calibrator = calibrator
        self.alignment = alignment
        self.targets = targets
        self.alpha = alpha
        self.ensemble = ensemble
        self.branches = branches
        self.cv = cv
        self.costs = costs
        self.input = input
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # -- settings that methods with fixed ones replace ---------------------------

    def _rule(self) -> SurvivorThresholdCalibrator:
        return SurvivorThresholdCalibrator(self.margin, margin_mode="local")

    def _alignment(self) -> SurvivorAlignment:
        if isinstance(self.alignment, str):
            return SurvivorAlignment(self.alignment)
        return self.alignment

    def _readers(self) -> dict[str, list[Any]]:
        """Classifiers that read plain 2-D data themselves, by parameter."""
        given = self.branch if isinstance(self.branch, list) else [self.branch]
        default = self._default_on_vectors()
        last = final_estimator_for(self.final_estimator, shared=True)
        return {
            "branch": [default if branch is None else branch for branch in given],
            "final_estimator": [last],
        }

    def _default_on_vectors(self) -> Any:
        (branch,) = default_branches([(1,)], None, 2)
        return branch

    def _default_branch(self, layout: TapLayout) -> Any:
        """Choose branches where `branch` is None: a template, or one for each tap."""
        n_classes = len(self.classes_)
        return default_branches(layout.shapes, layout.stage_macs, n_classes)

    # -- fitting -----------------------------------------------------------------

    def _check_params(self) -> None:
        check_branch_list(self.branch)
        if not is_auto(self.margin):
            check_margins(self.margin, None)
        alignment = self._alignment()
        alignment._validate_params()
        if not isinstance(alignment.margin, str):
            check_margins(alignment.margin, None, self._margin_of_alignment)
        elif alignment.kind != "none" and self._knob_name != self.knob:
            raise ValueError(
                f"{self._margin_of_alignment}='same' follows the cascade's margin, but "
                f"calibrator={self.calibrator!r} decides without one. Give a number."
            )
        elif alignment.kind != "none" and is_auto(self.margin):
            raise ValueError(
                f"{self._margin_of_alignment}='same' follows the cascade's margin, but "
                "margin='auto' is found after the branches are trained. Give one of "
                "the two a number."
            )
        if self.alpha is not None and self.targets != "soft":
            raise ValueError(
                f"alpha={self.alpha!r} mixes soft targets with the labels, and "
                f"targets={self.targets!r} has none. Use targets='soft', or alpha=None."
            )
        check_memory(self.memory)

    def _knob_moves(self, calibrator: ExitPolicy) -> bool:
        return calibrator.knob == self.knob

    def _alignment_rule(self) -> SurvivorThresholdCalibrator:
        """Return the settings of the thresholds that training weights are made from."""
        rule = self._exit_rule()
        if isinstance(rule, SurvivorThresholdCalibrator):
            return rule
        return self._rule()

    def _alignment_thresholds(self) -> NDArray[np.float64]:
        """Compute the thresholds that the training weights were made from."""
        rule = self._alignment_rule().set_params(margin=self._alignment_margin())
        every = copy.copy(self)
        every.branches = "all"  # as they were trained
        return every._fit_rule(rule).thresholds_

    def _alignment_margin(self) -> float | Sequence[float] | str:
        margin = self._alignment().margin
        return self.margin if isinstance(margin, str) else margin

    def _split_params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        trained, moved = super()._split_params()
        alignment = self._alignment()
        trained["alignment"] = alignment.used_params
        if alignment.kind != "none":
            settings = self._alignment_rule().get_params()
            del settings["margin"], settings["max_accuracy_drop"]
            trained["alignment_rule"] = settings
            if isinstance(alignment.margin, str):
                trained["margin"] = self.margin
        return trained, moved

    def _check_split(
        self, folds: Folds, codes: NDArray[np.intp], classes: NDArray[Any]
    ) -> None:
        alignment = self._alignment()
        if alignment.cross_fit and alignment.kind != "none" and not folds.out_of_fold:
            check_n_folds(
                "alignment__cross_fit",
                alignment.cross_fit,
                codes[folds.train],
                classes,
            )

    def _check_taps(self, layout: TapLayout) -> None:
        if not is_auto(self.margin):
            check_margins(self.margin, layout.n_taps)
        self._margins_of_weights(layout.n_taps)
        alphas_to_try(self.alpha, layout.n_taps)
        if self.branch is not None:
            check_n_branches(self.branch, layout.names)

    def _margins_of_weights(self, n_taps: int) -> NDArray[np.float64]:
        """Margins of the thresholds that make the training weights."""
        alignment = self._alignment()
        # Without weights no threshold reaches the training.
        margin = 0.0 if alignment.kind == "none" else self._alignment_margin()
        return check_margins(margin, n_taps, self._margin_of_alignment)

    def _train(self, data: TrainingData, task: Task) -> None:
        alignment, layout = self._alignment(), data.layout
        margins = self._margins_of_weights(layout.n_taps)
        check_targets(self.targets, data)
        branch = self._default_branch(layout) if self.branch is None else self.branch
        templates = clone_for_taps(branch, layout.names, data.seeds)
        alphas = alphas_to_try(self.alpha, layout.n_taps)
        n_fits = count_trainings(alphas, data.folds.out_of_fold, alignment)
        with task.part("branches", n_fits) as part:
            fitted = fit_branches(
                data,
                templates,
                self.targets,
                alphas,
                alignment,
                margins,
                self._alignment_rule(),
                memory=check_memory(self.memory),
                n_jobs=self.n_jobs,
                verbose=self.verbose,
                task=part,
                ensemble=self.ensemble,
            )
        self.branches_, self.alpha_ = fitted.branches, fitted.alphas
        self.effective_sample_size_ = fitted.effective_sample_sizes
        self.training_profile_ = fitted.profile
        self.calibration_, self.ensembles_ = calibration_of_stages(
            data, fitted.answers, fitted.proba
        )

    def _of_taps(self, taps: Sequence[int]) -> Self:
        """Return the cascade with some of its branches only, for cached answers.

        The calibration samples of a branch are those that survive these branches.
        """
        if self.ensembles_ is not None:
            raise TypeError(
                "ensemble=True weighs all branches before a stage, so none can be left "
                "out. Choose taps with ensemble=False, then fit those with True."
            )
        new = copy.copy(self)
        new.layout_ = self.layout_.select(self.layout_.names[k] for k in taps)
        new.branches_ = [self.branches_[k] for k in taps]
        new.alpha_ = [self.alpha_[k] for k in taps]
        new.training_profile_ = self.training_profile_.select(taps)
        new.calibration_ = self.calibration_.select_stages([*taps, -1])
        return new

    # -- the exit rule -----------------------------------------------------------

    @property
    def margin_(self) -> float | Sequence[float]:
        """The margin that is used; NaN where "auto" lets nothing exit."""
        return self._of_calibrator("margin_")

    @property
    def margin_path_(self) -> dict[str, NDArray[Any]]:
        """What ``margin="auto"`` looked at, from strict to lax."""
        return self._of_calibrator("margin_path_")

    @property
    def thresholds_(self) -> NDArray[np.float64]:
        """Thresholds of `calibrator_`, shape (n_branches, n_classes)."""
        return self._of_calibrator("thresholds_")

    @property
    def kept_branches_(self) -> NDArray[np.bool_]:
        """At which branches some class may exit, shape (n_branches,)."""
        highest = self._of_calibrator("_highest_score")()
        return can_exit(self.thresholds_, np.inf if highest is None else highest)

    @property
    def enabled_(self) -> NDArray[np.bool_]:
        """Whether a class exits at a branch, shape (n_branches, n_classes)."""
        return self._of_calibrator("enabled_")

    @property
    def precision_(self) -> NDArray[np.float64]:
        """Precision of what exits in calibration, shape (n_branches, n_classes)."""
        return self._of_calibrator("precision_")

    @property
    def support_(self) -> NDArray[np.float64]:
        """Weight of what exits in calibration, shape (n_branches, n_classes)."""
        return self._of_calibrator("support_")

    @property
    def reference_precision_(self) -> NDArray[np.float64]:
        """Precision of the last stage for each predicted class, shape (n_classes,)."""
        return self._of_calibrator("reference_precision_")

    def _of_calibrator(self, name: str) -> Any:
        # Before a fit an AttributeError, as of any fitted attribute.
        return getattr(self.__dict__.get("calibrator_"), name)

    def set_margin(self, margin: float | Sequence[float] | str) -> Self:
        """Calibrate anew for another margin, without training anything.

        Parameters
        ----------
        margin : float, sequence of float or "auto"
            As the parameter `margin`, which it becomes.

        Returns
        -------
        self : CascadeClassifier
            The same cascade with other thresholds.

        Raises
        ------
        ValueError
            If the margin is not finite or not below 1, a sequence does not have one
            for each branch, the `calibrator` has no margin, or the branches depend on
            it (``SurvivorAlignment(margin="same")``).

        Warns
        -----
        CalibrationWarning
            If no class can exit at any branch with it.
        """
        check_is_fitted(self)
        self._check_has_margin()
        return self.set_operating_point(margin)

    def _check_has_margin(self) -> None:
        if self._knob_name != self.knob:
            raise ValueError(
                f"calibrator={self.calibrator!r} decides without a margin. Use "
                f"set_operating_point with a value of {self.calibrator.knob!r}, or "  # type: ignore[union-attr]
                "set_calibrator(None)."
            )

    def _check_movable(self) -> None:
        alignment = self._alignment()
        follows = alignment.kind != "none" and isinstance(alignment.margin, str)
        if follows and self._knob_name == self.knob:
            raise ValueError(
                f"{self._margin_of_alignment}='same' trains the branches for one "
                "margin: fit again with set_params(margin=...), or give it a number."
            )

    def thresholds_at(
        self, margin: float | Sequence[float] | str
    ) -> NDArray[np.float64]:
        """Compute the thresholds for another margin, without changing the cascade.

        Parameters
        ----------
        margin : float, sequence of float or "auto"
            As the parameter `margin`.

        Returns
        -------
        thresholds : ndarray of float64, shape (n_branches, n_classes)
            As `thresholds_`.

        Raises
        ------
        ValueError
            If the margin is not finite or not below 1, a sequence does not have one
            for each branch, or the `calibrator` has no margin.
        """
        check_is_fitted(self)
        self._check_has_margin()
        return self._rule_at(margin).thresholds_
