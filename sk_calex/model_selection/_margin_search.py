"""Constraint in, calibrated cascade out."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import indexable
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.validation import check_is_fitted

from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._cascade import CascadeClassifier
from sk_calex.utils._fitted_state import all_or_nothing
from sk_calex.utils._validation import (
    check_labels,
    check_sample_weight,
    note_features,
)
from sk_calex.utils._warn import warn_caller

from ._estimators import (
    Prepared,
    cascade_in,
    knob_of,
    moved,
    taps_of,
    without_exits,
)
from ._folds import outcomes_of, outcomes_of_folds, routed_params
from ._found import FoundCascade
from ._operating_points import Constraint, Landscape, best_joint, best_shared
from ._taps import best_taps, check_values

__all__ = ["MarginSearchCV"]


class MarginSearchCV(FoundCascade):
    """Search for the operating point that satisfies a constraint, by cross-validation.

    A constraint goes in, a calibrated cascade comes out: the cheapest one that loses at
    most so much accuracy, or the most accurate one that saves at least so many FLOPs.
    The cascade is trained once a fold; all operating points are then measured on what
    its stages say of the samples held out, each sample once. In the spirit of
    scikit-learn's `TunedThresholdClassifierCV`.

    What is found is an estimate. ``ExitRiskController(search).fit(X_new, y_new)``
    certifies a fitted search on new rows.

    Parameters
    ----------
    estimator : estimator
        A cascade, or a pipeline that ends in one. A fitted one inside `FrozenEstimator`
        is not trained: `X` and `y` then only choose, and must be new to it.
    max_accuracy_drop : float, default=None
        Accuracy that may be lost against the plain last stage, in [0, 1]: 0.01 is one
        point. The cheapest operating point within it is taken. Give this or
        `flops_budget`.
    flops_budget : float, default=None
        Least share of the plain backbone's FLOPs to be saved, in [0, 1], or of its cost
        in the unit of the cascade's `costs`. The most accurate operating point within
        it is taken.
    margins : "auto" or array-like of shape (n_margins,), default="auto"
        Margins to try, or values of what moves the method instead, the knob of a
        baseline or of the cascade's `calibrator`:

        - "auto": about 20 that span the curve; the steps around the best one are then
          halved until they save alike to half a per cent of the FLOPs.
        - array-like: these, and no others.
    per_branch : bool, default=False
        Whether each branch gets a margin of its own. All combinations are tried up to
        about 1,000; beyond that, coordinate descent from the best shared margin, which
        may end in a local optimum, but never below one margin for all. See `search_`.
    taps : {"all", "select"}, default="all"
        "select": also choose which taps pay for their heads, as `select_taps` does, and
        keep only those; for `CascadeClassifier` and its kin.
    cv : int or splitter, default=5
        Outer folds: what holds out the samples on which operating points are measured.
        The `cv` of the cascade goes on holding out what calibrates.
    refit : bool, default=True
        Whether to train a cascade on all samples at the operating point found.
    n_jobs : int, default=None
        Folds trained at once, by joblib.
    verbose : int, default=0
        1 prints a line for what was found.

    Attributes
    ----------
    best_estimator_ : estimator
        The cascade (or pipeline) trained on all samples at the operating point found,
        or a copy of the frozen one that was moved there. With ``taps="select"`` it has
        the chosen taps only.
    best_margin_ : float or tuple of float
        The margin found, or value of the knob; with `per_branch` one a branch; NaN for
        the fallback.
    is_fallback_ : bool
        Whether the plain network was taken, since no point within the constraint saves
        FLOPs. `best_estimator_` then lets no sample exit.
    best_score_ : float
        Accuracy there, over all folds.
    best_flops_reduction_ : float
        Share of the plain backbone's FLOPs saved there, over all folds.
    best_index_ : int
        Its row in `cv_results_`.
    cv_results_ : dict of ndarrays
        One row an operating point that was measured: margin, mean_accuracy,
        std_accuracy, mean_flops_reduction, std_flops_reduction, feasible. Means are
        over all held-out samples, standard deviations over the folds.
    backbone_accuracy_ : float
        Accuracy of the plain last stage over all folds.
    search_ : {"exhaustive", "greedy"}
        Whether all combinations of margins were measured.
    taps_ : tuple of str
        Taps of the cascade found.
    tap_search_ : Bunch
        Result of the choice of taps, as of `select_taps`; only with ``taps="select"``.
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    n_features_in_ : int
        Columns of a 2-D `X`, or channels of the samples.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Column names, where `X` was a data frame.

    See Also
    --------
    ExitRiskController : Certify what was found, on rows that are new to it.
    margin_curve : Accuracy and cost over margins.
    cheapest_within : The same constraints for a grid search.

    Notes
    -----
    Our definition. Cost is in the unit of the cascade's `costs` where it has them:
    "cheapest", `flops_budget` and every `flops_reduction` are then about that cost,
    otherwise about FLOPs. The drop is counted between pooled accuracies: held-out
    samples that the cascade gets right, against those that the last stage gets right.
    It is an estimate from a choice among many points, not a guarantee: on new data the
    drop can be larger, the more so the fewer the samples. For a cascade on samples,
    their features are made once and kept in memory (or as a memory map, with a cache).

    ``SurvivorAlignment(margin="same")`` cannot be searched here, since each margin then
    is another training: use `GridSearchCV` with `cheapest_within`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sk_calex import CascadeClassifier, MarginSearchCV
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> forest = RandomForestClassifier(20, random_state=0)
    >>> cascade = CascadeClassifier(final_estimator=forest, random_state=0)
    >>> search = MarginSearchCV(cascade, max_accuracy_drop=0.05, cv=3).fit(X, y)
    >>> bool(search.best_score_ >= search.backbone_accuracy_ - 0.05)
    True
    >>> search.best_estimator_.margin == search.best_margin_
    True
    >>> labels, depth = search.predict(X, return_depth=True)
    """

    _cuts_input = True

    _parameter_constraints: dict[str, list[Any]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "max_accuracy_drop": [Real, None],
        "flops_budget": [Real, None],
        "margins": [StrOptions({"auto"}), "array-like"],
        "per_branch": ["boolean"],
        "taps": [StrOptions({"all", "select"})],
        "cv": ["cv_object"],
        "refit": ["boolean"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        max_accuracy_drop: float | None = None,
        flops_budget: float | None = None,
        margins: Any = "auto",
        per_branch: bool = False,
        taps: str = "all",
        cv: Any = 5,
        refit: bool = True,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.max_accuracy_drop = max_accuracy_drop
        self.flops_budget = flops_budget
        self.margins = margins
        self.per_branch = per_branch
        self.taps = taps
        self.cv = cv
        self.refit = refit
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Measure operating points out of fold, choose one, and train a cascade there.

        Parameters
        ----------
        X : array, tensor or list of shape (n_samples, ...)
            Samples, as the estimator takes them. Not a Dataset: folds take rows.
        y : array-like of shape (n_samples,)
            Labels of any kind.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, in training and in the figures.
        **params : dict
            Metadata for the estimator's ``fit`` and for `cv`'s ``split``, with metadata
            routing; ``groups`` for `cv` also without.

        Returns
        -------
        self : MarginSearchCV
            The fitted search.

        Raises
        ------
        ValueError
            If not exactly one constraint is given, no operating point satisfies it (the
            message says which comes nearest), or the margin cannot be searched.
        TypeError
            If `estimator` holds no cascade, or ``taps="select"`` does not suit it.

        Warns
        -----
        UserWarning
            If every point within the constraint costs more than the plain network,
            which is then taken.
        """
        with all_or_nothing(self):
            self._search(X, y, sample_weight, params)
        if self.is_fallback_:
            warn_caller(
                "no operating point within the constraint saves FLOPs, heads counted, "
                "so that the plain network is the best one: best_estimator_ lets no "
                "sample exit. Try cheaper branches or fewer taps, or allow a larger "
                "drop.",
                UserWarning,
            )
        return self

    def _search(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        params: Mapping[str, Any],
    ) -> None:
        self._validate_params()
        constraint = Constraint.of(self.max_accuracy_drop, self.flops_budget)
        self._check_estimator()
        checked: tuple[Any, Any] = indexable(X, y)
        X, labels = checked[0], check_labels(checked[1])
        if len(labels) == 0:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={np.shape(X)}) while a minimum "
                "of 1 is required: X and y are empty."
            )
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, y holds one class: "
                f"{self.classes_.tolist()[0]!r}."
            )
        weight = None
        if sample_weight is not None:
            weight = check_sample_weight(sample_weight, labels)
        routed = routed_params(self, weight, params)
        frozen = isinstance(self.estimator, FrozenEstimator)
        source: Any = None
        prepared: Prepared | None = None
        if frozen:
            source = self.estimator.estimator
            check_is_fitted(source)
            folds = [outcomes_of(source, X, labels, weight)]
        else:
            prepared = Prepared.of(self.estimator, X)
            folds = outcomes_of_folds(
                prepared, self.cv, labels, weight, routed, n_jobs=self.n_jobs
            )
            source = prepared.backbone
        cascade = folds[0].cascade
        # The backbone may name classes that y lacks.
        self.classes_ = np.union1d(self.classes_, cascade.classes_)
        if source is None and isinstance(self.estimator, BaseCascade):
            source = cascade
        landscape = Landscape(folds, constraint)
        values = check_values(self.margins, cascade)
        self._layout_ = cascade.layout_
        self.taps_ = self._layout_.names
        if self.taps == "select":
            self.tap_search_ = best_taps(landscape, values)
            self.taps_ = tuple(self.tap_search_.taps)
            chosen = [self._layout_.names.index(name) for name in self.taps_]
            landscape = landscape.of_taps(chosen)
            if self.refit and prepared is not None:
                prepared = prepared.of_taps(chosen, self._layout_, X)
        if isinstance(self.margins, str):
            # Of combinations there are many: coarser steps, and none twice.
            grid = Landscape(landscape.folds, constraint)
            values = (
                grid.spread(values) if self.per_branch else landscape.refine(values)
            )
        self._choose(landscape, values, knob_of(cascade))
        value = None if self.is_fallback_ else self.best_margin_
        if prepared is None:
            self.best_estimator_ = moved(source, value)
        elif self.refit:
            self.best_estimator_ = prepared.refit(value, labels, routed.estimator.fit)
            if self.is_fallback_:
                self.best_estimator_ = without_exits(self.best_estimator_)
            # A pipeline is known by its first step.
            source = self.best_estimator_ if source is None else source
        note_features(self, source)

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        text = super().__repr__(N_CHAR_MAX)
        if not hasattr(self, "best_margin_"):
            return text
        return (
            f"{text}\n# found {self.best_margin_!r}: an estimate, not a guarantee; see "
            "ExitRiskController"
        )

    def _check_estimator(self) -> None:
        cascade = cascade_in(self.estimator)
        if isinstance(self.estimator, Pipeline) and _ends_frozen(self.estimator):
            raise TypeError(
                "estimator is a pipeline whose cascade is in a FrozenEstimator: its "
                "other steps would be trained, and the fitted cascade moved. Freeze "
                "the whole fitted pipeline, FrozenEstimator(pipeline), or nothing."
            )
        cascade._check_movable()
        if self.per_branch and knob_of(cascade).split("__")[-1] != "margin":
            raise ValueError(
                "per_branch=True searches margins, but this cascade moves by "
                f"{knob_of(cascade)!r}. Use per_branch=False, or give it "
                "calibrator=SurvivorThresholdCalibrator()."
            )
        if self.taps == "select" and self.estimator is not cascade:
            raise TypeError(
                f"taps='select' trains a cascade on fewer taps, which "
                f"{type(self.estimator).__name__} does not allow. Give the cascade "
                "itself; for a fitted one use select_taps."
            )
        if self.taps == "select" and not isinstance(cascade, CascadeClassifier):
            raise TypeError(
                f"taps='select' leaves branches out, but {type(cascade).__name__} "
                "trains them together. Give a CascadeClassifier."
            )

    def _choose(self, landscape: Landscape, values: list[Any], knob: str) -> None:
        search = best_joint if self.per_branch else best_shared
        best, self.search_ = search(landscape, values)
        points = list(landscape.measured.values())
        self.is_fallback_ = False
        if best.flops_reduction < 0 or not best.feasible:
            # The plain network costs less than that, and loses nothing.
            plain = landscape.backbone
            if plain.feasible:
                best, self.is_fallback_ = plain, True
                points.append(plain)
        landscape.check(best, knob)
        self.best_margin_ = best.value
        self.best_index_ = points.index(best)
        self.best_score_ = best.accuracy
        self.best_flops_reduction_ = best.flops_reduction
        self.backbone_accuracy_ = landscape.backbone_accuracy
        self.cv_results_ = {
            "margin": np.array([point.value for point in points]),
            "mean_accuracy": np.array([point.accuracy for point in points]),
            "std_accuracy": np.array([point.accuracies.std() for point in points]),
            "mean_flops_reduction": np.array(
                [point.flops_reduction for point in points]
            ),
            "std_flops_reduction": np.array(
                [point.reductions.std() for point in points]
            ),
            "feasible": np.array([point.feasible for point in points]),
        }
        if self.verbose:
            print(
                f"{knob}={best.value}: accuracy {best.accuracy:.4f} (backbone "
                f"{self.backbone_accuracy_:.4f}), {best.flops_reduction:.1%} of the "
                f"{landscape.cost_name} saved; {len(points)} operating points, "
                f"{self.search_}"
            )

    def _input_of_best(self, X: Any) -> Any:
        """Cut X to what `best_estimator_` takes: features of the chosen taps only."""
        cascade = cascade_in(self.best_estimator_)
        if (
            cascade.layout_.names == self._layout_.names
            or cascade.backbone_ is not None
        ):
            return X
        if np.ndim(X) != 2 or np.shape(X)[1] != self._layout_.width:
            raise ValueError(
                f"X has shape {np.shape(X)}; expected features of all candidate taps, "
                f"{self._layout_.width} columns, as in fit. best_estimator_ takes "
                "those of the chosen taps."
            )
        return taps_of(X, self._layout_, self.taps_)

    def get_metadata_routing(self) -> MetadataRouter:
        """Return the metadata routing: itself, the estimator's fit, the split of `cv`.

        Returns
        -------
        routing : MetadataRouter
            The routing.
        """
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=self.estimator,
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
            .add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        )


def _ends_frozen(estimator: Any) -> bool:
    """Say whether a pipeline ends in a frozen step, that of a pipeline inside too."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return isinstance(estimator, FrozenEstimator)
