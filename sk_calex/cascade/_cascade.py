"""CalexNet as a scikit-learn meta-estimator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory

from sk_calex.branches._as_branch import clone_for_taps
from sk_calex.branches._branches import PrototypePoolingClassifier
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._calibrator import class_precision
from sk_calex.calibration._table import CalibrationRule, CalibrationTable
from sk_calex.calibration._thresholds import BranchThresholds
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.cascade._fit_branches import (
    Alignment,
    Problem,
    fit_branches,
    n_trainings,
)
from sk_calex.cascade._learning import LearningCascade, Lesson
from sk_calex.cascade._runtime import Answer
from sk_calex.policies import ClassThresholds, ExitPolicy, Policy
from sk_calex.utils._callbacks import Task, with_callbacks
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._validation import check_margins

__all__ = ["CascadeClassifier"]


class CascadeClassifier(LearningCascade):
    """A frozen classifier made cheaper by branches that answer the easy samples early.

    Branches are trained on the backbone's tapped features in cascade order. Each is
    trained with weights that follow the samples which reach it, imitates the backbone's
    probabilities, and answers a sample only where its confidence reaches a threshold
    that was calibrated, class by class, on held-out samples that reach it.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier; in a `FrozenEstimator` it is not fitted again. None: `X`
        is plain 2-D data with a single branch before `final_estimator`, or, with
        ``input="features"``, the output of `FrozenBackbone.transform`.
    branch : classifier or list of classifiers, default=None
        Template of the branches, or one for each tap: any classifier with
        `predict_proba`. None means `PrototypePoolingClassifier()`.
    final_estimator : classifier, default=None
        Trained on the backbone's outputs and answering in its place: for a backbone
        that never saw the classes. None: the outputs are the classes' logits (for
        plain 2-D data: ``LogisticRegression(max_iter=1000)`` on `X`).
    margin : float or sequence of float, default=0.05
        How much accuracy an exit may give up against the backbone: finite, below 1; a
        sequence holds one margin a branch. Changed without refitting by `set_margin`.
        At the default, half the FLOPs of a ResNet-18 went for half a point.
    margin_mode : {"local", "relative", "absolute"}, default="local"
        Where the margin holds. "local": at each confidence down to the threshold; 0
        gives up nothing that the calibration samples show. "relative" and "absolute",
        the paper's gate: for the mean of what exits as a class, whose precision must
        reach ``(1 - margin) * precision`` of the backbone or ``precision - margin``;
        0 still loses accuracy, as easy samples pay for hard ones. The paper's canonical
        setting is ``margin=0.20, margin_mode="relative"``.
    min_support : float, default=10
        Calibration samples (total weight) that must stand at or above a threshold.
    rule : {"smallest", "first_violation"}, default="smallest"
        Which threshold of a mean; see `SurvivorThresholdCalibrator`.
    shrinkage : float, default=200
        See `SurvivorThresholdCalibrator` ("local").
    alignment : {"soft", "hard", "none"}, default="soft"
        Training weights of later branches: the probability of surviving the earlier
        ones, the survivors alone, or all samples alike.
    alignment_margin : float or "same", default=0.05
        Margin of the thresholds from which the weights are made, in the same mode. A
        number leaves the branches independent of `margin`; "same" uses `margin`, and
        then another margin asks for another fit.
    alignment_bandwidth : float, default=0.1
        Width of the sigmoid around a threshold, in units of confidence ("soft").
    alignment_mixture : float, default=0.5
        Share of the survivors in the training distribution, in [0, 1] ("soft"); the
        rest is all samples alike. The paper's setting is 1.
    targets : {"soft", "argmax", "labels"}, default="soft"
        What branches learn: the backbone's probabilities, its answers, or `y`.
    calibrate_on : {"survivors", "all"}, default="survivors"
        Calibration samples of a branch: those that reach it, or all.
    ensemble : bool, default=False
        Whether each stage, the last included, answers by a weighted geometric mean of
        its probabilities and those of the branches before, fitted on the calibration
        samples: more accurate at no cost. It is then no longer the backbone alone that
        answers what no branch does.
    policy : ExitPolicy, default=None
        Another exit rule in place of the margins, fitted on the calibration samples;
        see `sk_calex.policies`. `margin` and the settings of its thresholds then matter
        for the alignment alone.
    cv : float, int or splitter, default=0.2
        What calibrates. A float holds out that share, stratified. A splitter with one
        split (such as ``PredefinedSplit``) trains on the one part and calibrates on the
        other. An int, or a splitter that partitions the samples, calibrates on
        out-of-fold scores and trains the branches that are kept on all samples.
    cross_fit : int, default=None
        With one split: number of folds in the training part from which the scores that
        make the weights are taken out of fold. None uses the branch's own scores.
    input : {"samples", "features"}, default="samples"
        Whether `X` holds samples or the output of `FrozenBackbone.transform`.
    memory : str or joblib.Memory, default=None
        Where fitted branches are cached, as in `sklearn.pipeline.Pipeline`.
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
        Sorted labels.
    branches_ : list of classifiers
        Trained on class codes ``0 .. n_classes - 1``.
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Confidence at which a sample predicted as a class exits; ``inf`` where disabled.
    enabled_ : ndarray of bool, shape (n_branches, n_classes)
        Whether a class exits at a branch.
    precision_, support_ : ndarray of float64, shape (n_branches, n_classes)
        Precision of the exiting calibration samples, NaN where disabled; their weight.
    reference_precision_ : ndarray of float64, shape (n_classes,)
        Precision of the backbone for each predicted class on the calibration samples.
    effective_sample_size_ : ndarray of float64, shape (n_branches,)
        Of the training weights of each branch.
    training_profile_ : TrainingProfile
        Those weights by class and by confidence, for `alignment_report`.
    backbone_, final_estimator_, policy_ : object or None
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

    Notes
    -----
    Re-implementation of CalexNet from the published description: importance weights
    (Eq. 13), class-precision margins on survivors (Eq. 8), soft targets (Eq. 10). See
    the Methods page for what is the paper's and what is our definition: the default,
    local margins, is ours. Thresholds are empirical: on new data an exit can cost more.

    Clones share in memory what they train: where only `margin` or `policy` differs,
    branches are trained once, and the clones after the first answer `X` that came
    before without running (so time the first). Processes share by `memory`.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> depth.shape
    (500,)
    >>> _ = cascade.set_margin(0.1)  # no refit
    """

    knob: ClassVar[str] = "margin"

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [object, None],
        "branch": [HasMethods(["fit", "predict_proba"]), list, None],
        "final_estimator": [HasMethods(["fit", "predict_proba"]), None],
        "margin": [Real, "array-like"],
        "margin_mode": [StrOptions({"relative", "absolute", "local"})],
        "min_support": [Interval(Real, 0, None, closed="left")],
        "rule": [StrOptions({"smallest", "first_violation"})],
        "shrinkage": [Interval(Real, 0, None, closed="both")],
        "alignment": [StrOptions({"soft", "hard", "none"})],
        "alignment_margin": [Real, StrOptions({"same"})],
        "alignment_bandwidth": [Interval(Real, 0, None, closed="left")],
        "alignment_mixture": [Interval(Real, 0, 1, closed="both")],
        "targets": [StrOptions({"soft", "argmax", "labels"})],
        "calibrate_on": [StrOptions({"survivors", "all"})],
        "ensemble": ["boolean"],
        "policy": [ExitPolicy, None],
        "cv": ["cv_object", Interval(Real, 0, 1, closed="neither")],
        "cross_fit": [Interval(Integral, 2, None, closed="left"), None],
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
        margin: float | Sequence[float] = 0.05,
        margin_mode: str = "local",
        min_support: float = 10,
        rule: str = "smallest",
        shrinkage: float = 200,
        alignment: str = "soft",
        alignment_margin: float | str = 0.05,
        alignment_bandwidth: float = 0.1,
        alignment_mixture: float = 0.5,
        targets: str = "soft",
        calibrate_on: str = "survivors",
        ensemble: bool = False,
        policy: ExitPolicy | None = None,
        cv: Any = 0.2,
        cross_fit: int | None = None,
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
        self.margin_mode = margin_mode
        self.min_support = min_support
        self.rule = rule
        self.shrinkage = shrinkage
        self.alignment = alignment
        self.alignment_margin = alignment_margin
        self.alignment_bandwidth = alignment_bandwidth
        self.alignment_mixture = alignment_mixture
        self.targets = targets
        self.calibrate_on = calibrate_on
        self.ensemble = ensemble
        self.policy = policy
        self.cv = cv
        self.cross_fit = cross_fit
        self.input = input
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Train and calibrate the branches in cascade order.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples: images for a backbone, 2-D data without one, or a backbone's
            features with ``input="features"``.
        y : array-like of shape (n_samples,)
            Labels of any kind.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in training and calibration.
        **params : dict
            Metadata for `cv`'s ``split``, such as ``groups``, with metadata routing.

        Returns
        -------
        self : CascadeClassifier
            The fitted cascade.

        Raises
        ------
        ValueError
            If `X`, `y` and the backbone do not fit each other, a value is not finite, a
            class is absent from a part of the split, the margin is not below 1, or a
            sequence of margins is not one a branch.
        TypeError
            If `backbone` is not a `FrozenBackbone`.
        """
        self._validate_params()
        check_margins(self.margin, None)
        follow = self.alignment_margin == "same"
        align_at: Any = self.margin if follow else self.alignment_margin
        check_margins(align_at, None, "alignment_margin")
        with Task.root(self, 3, X, y, sample_weight) as task:
            with self._recalled(X, y, sample_weight, params) as known:
                if not known:
                    with task.part("features"):
                        lesson = self._lesson(X, y, sample_weight, params)
                    self._train(lesson, align_at, task)
            with (
                task.part("calibration"),
                showing(self.verbose, "calibration"),
                bar(unit="rule", total=1) as shown,
            ):
                self._calibrate()
                shown.update()
        return self

    def _train(self, lesson: Lesson, align_at: Any, task: Task) -> None:
        """Train the branches; sets all that calibration needs."""
        held, codes, final = lesson.folds.calibration, lesson.codes, lesson.final
        self.reference_precision_ = class_precision(
            codes[held],
            final[held].argmax(axis=1),
            lesson.n_classes,
            lesson.weight[held],
        )
        check_margins(self.margin, lesson.layout.n_taps)
        problem = Problem(
            lesson.features,
            lesson.layout,
            codes,
            lesson.weight,
            final,
            final.argmax(axis=1) if self.targets == "argmax" else codes,
            final if self.targets == "soft" else None,
            lesson.n_classes,
        )
        alignment = Alignment(
            self.alignment,
            align_at,
            self.alignment_bandwidth,
            self.alignment_mixture,
        )
        branch = self._default_branch() if self.branch is None else self.branch
        templates = clone_for_taps(branch, lesson.layout.names, lesson.seeds)
        # Each branch, and each time that one is also trained out of fold.
        n_fits = n_trainings(len(templates), lesson.folds, alignment, self.cross_fit)
        with task.part("branches", n_fits) as part:
            fitted = fit_branches(
                problem,
                templates,
                lesson.folds,
                self.reference_precision_,
                alignment,
                self._rule(),
                cross_fit=self.cross_fit,
                memory=check_memory(self.memory),
                n_jobs=self.n_jobs,
                verbose=self.verbose,
                task=part,
                keep_proba=self.ensemble,
            )
        self.branches_ = fitted.branches
        self.effective_sample_size_ = fitted.effective_sample_sizes
        self.training_profile_ = fitted.profile
        self.calibration_: CalibrationTable = fitted.table
        self.calibration_answers_: StageTable = fitted.answers
        self._calibration_codes = codes[held]
        self._calibration_weight = lesson.weight[held]
        self.ensembles_: Ensembles | None = None
        if fitted.proba is not None:
            self.ensembles_ = Ensembles.fit(
                fitted.proba, self._calibration_codes, self._calibration_weight
            )
            answers = StageTable.of(self.ensembles_.together(fitted.proba))
            self.calibration_ = fitted.table.with_answers(answers)
            self.calibration_answers_ = answers

    def _answers(self) -> list[Answer]:
        alone = super()._answers()
        if self.ensembles_ is None:
            return alone
        return [self.ensembles_.answer(k, stage) for k, stage in enumerate(alone)]

    def _default_branch(self) -> Any:
        """Template of the branches where `branch` is None."""
        return PrototypePoolingClassifier()

    def _moving_params(self) -> frozenset[str]:
        if self.alignment == "none":  # no thresholds while branches are trained
            settings = {"margin_mode", "min_support", "rule", "shrinkage"}
            return frozenset({"margin", "policy", "calibrate_on"} | settings)
        moves = {"policy"} if self.alignment_margin == "same" else {"margin", "policy"}
        return frozenset(moves)

    def _unused_params(self) -> frozenset[str]:
        if self.alignment == "soft":
            return frozenset()
        soft = {"alignment_bandwidth", "alignment_mixture"}
        if self.alignment == "hard":
            return frozenset(soft)
        return frozenset(soft | {"alignment_margin", "cross_fit"})

    def _rule(self) -> CalibrationRule:
        return CalibrationRule(
            self.margin_mode,
            self.min_support,
            self.rule,
            self.calibrate_on == "survivors",
            self.shrinkage,
        )

    def _calibrate(self) -> Self:
        found = self._thresholds(self.margin)
        self.thresholds_ = np.stack([branch.thresholds for branch in found])
        self.enabled_ = np.stack([branch.enabled for branch in found])
        self.precision_ = np.stack([branch.precision for branch in found])
        self.support_ = np.stack([branch.support for branch in found])
        self.policy_ = None if self.policy is None else self._fit_policy(self.policy)
        return self

    def _thresholds(self, margin: float | Sequence[float]) -> list[BranchThresholds]:
        return self.calibration_.thresholds(margin, self._rule())

    def _policy(self) -> Policy:
        if self.policy_ is not None:
            return self.policy_
        return ClassThresholds(self.thresholds_)

    def _policy_at(self, value: float | Sequence[float]) -> Policy:
        if self.policy is not None:
            return self._fit_policy(self.policy, value)
        return ClassThresholds(self.thresholds_at(value))

    def _of_taps(self, taps: Sequence[int]) -> Self:
        """What this cascade is with some of its branches only, for cached answers.

        The calibration samples of a branch are those that survive these branches.
        """
        if self.ensembles_ is not None:
            raise TypeError(
                "ensemble=True weighs all branches before a stage, so none can be left "
                "out. Choose taps with ensemble=False, then fit those with True."
            )
        kept = copy.copy(self)
        kept.layout_ = self.layout_.select(self.layout_.names[k] for k in taps)
        kept.branches_ = [self.branches_[k] for k in taps]
        kept.calibration_ = self.calibration_.of_branches(taps)
        kept.training_profile_ = self.training_profile_.of_branches(taps)
        kept.calibration_answers_ = self.calibration_answers_.of_stages([*taps, -1])
        return kept

    def set_margin(self, margin: float | Sequence[float]) -> Self:
        """Calibrate anew for another margin, without training anything.

        Parameters
        ----------
        margin : float or sequence of float
            Finite and below 1, for all branches or one a branch; becomes the parameter
            `margin`.

        Returns
        -------
        self : CascadeClassifier
            The same cascade with other thresholds.

        Raises
        ------
        ValueError
            If the margin is not finite or not below 1, a sequence is not one a branch,
            `policy` has taken its place, or ``alignment_margin="same"``, where the
            branches depend on the margin.
        """
        return self.set_operating_point(margin)

    def _check_movable(self) -> None:
        super()._check_movable()
        if self.alignment_margin == "same" and self.alignment != "none":
            raise ValueError(
                "alignment_margin='same' trains the branches for one margin: fit again "
                "with set_params(margin=...), or give alignment_margin a number."
            )

    def thresholds_at(self, margin: float | Sequence[float]) -> NDArray[np.float64]:
        """Thresholds for another margin, without changing the cascade.

        Parameters
        ----------
        margin : float or sequence of float
            Finite and below 1, for all branches or one a branch.

        Returns
        -------
        thresholds : ndarray of float64, shape (n_branches, n_classes)
            As `thresholds_`.

        Raises
        ------
        ValueError
            If the margin is not finite or not below 1, or a sequence is not one a
            branch.
        """
        check_is_fitted(self)
        return np.stack([branch.thresholds for branch in self._thresholds(margin)])
