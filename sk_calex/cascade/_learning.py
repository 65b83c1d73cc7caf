"""What every cascade does before it trains: X and y, the split, the last stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._as_branch import fit_with_weights, probabilities_of
from sk_calex.cascade._last_stage import check_output_order, output_order
from sk_calex.cascade._sharing import SharingCascade
from sk_calex.cascade._training_data import Folds, make_folds
from sk_calex.policies import ExitPolicy
from sk_calex.utils._callbacks import CallbackSupportMixin
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._validation import (
    as_tensor,
    check_finite,
    check_sample_weight,
    softmax64,
)

__all__ = ["LearningCascade", "Lesson"]


@dataclass(frozen=True)
class Lesson:
    """What a cascade learns from.

    Features and their layout, class codes and weights of all rows, the last stage's
    probabilities (n_samples, n_classes), which rows train and which calibrate, and the
    source of seeds.
    """

    features: NDArray[Any]
    layout: TapLayout
    codes: NDArray[np.intp]
    weight: NDArray[np.float64]
    final: NDArray[np.float64]
    folds: Folds
    seeds: np.random.RandomState
    n_classes: int


class LearningCascade(CallbackSupportMixin, SharingCascade):
    """Base of the cascades that are fitted; a subclass trains what `_lesson` gives.

    It names in `knob` the parameter that moves it along the accuracy-cost curve.
    """

    knob: ClassVar[str]
    final_estimator: Any
    policy: ExitPolicy | None
    cv: Any
    random_state: Any
    verbose: int

    def _lesson(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        params: dict[str, Any],
    ) -> Lesson:
        """Check and split; sets `classes_`, `layout_` and `final_estimator_`."""
        routed = process_routing(self, "fit", **params) if params else None
        # Before the backbone runs, which may take long.
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        if self.final_estimator is not None and not is_classifier(self.final_estimator):
            raise TypeError(
                f"final_estimator must be a classifier, got {self.final_estimator!r}."
            )
        with showing(self.verbose, "features"):
            features, layout = self._features_of(X)
        check_consistent_length(features, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, y holds one class: "
                f"{self.classes_.tolist()[0]!r}."
            )
        weight = check_sample_weight(sample_weight, features)
        seeds = check_random_state(self.random_state)
        split_args = {} if routed is None else routed.splitter.split
        folds = make_folds(self.cv, codes, weight, self.classes_, seeds, split_args)
        self.layout_ = layout
        final = self._final_proba(features, codes, weight, folds)
        return Lesson(features, layout, codes, weight, final, folds, seeds, n_classes)

    def _calibrate(self) -> Self:
        """Fit the exit rule on what the stages said of the calibration samples."""
        raise NotImplementedError

    def set_policy(self, policy: ExitPolicy | None) -> Self:
        """Exit by another rule, without training anything.

        Parameters
        ----------
        policy : ExitPolicy or None
            A rule, which is cloned and fitted on the calibration samples; becomes the
            parameter `policy`. None: the method's own.

        Returns
        -------
        self : object
            The same cascade with another exit rule.

        Raises
        ------
        TypeError
            If `policy` is not a rule.
        ValueError
            If the rule cannot be fitted.
        """
        check_is_fitted(self)
        if policy is not None and not isinstance(policy, ExitPolicy):
            raise TypeError(
                f"policy must be a rule of sk_calex.policies or None, got {policy!r}. "
                "The Oracle is no rule: it needs the labels."
            )
        return self._calibrate_with("policy", policy)

    def set_operating_point(self, value: float | Sequence[float]) -> Self:
        """Move along the curve without training anything.

        Parameters
        ----------
        value : float or sequence of float
            New value of the knob, the parameter named by `knob`; margins may be a
            sequence, one a branch.

        Returns
        -------
        self : object
            The same cascade with another exit rule.

        Raises
        ------
        ValueError
            If the value is not accepted, `policy` has taken the rule's place, or the
            branches themselves depend on the knob.
        """
        check_is_fitted(self)
        self._check_movable()
        return self._calibrate_with(self.knob, value)

    def _check_movable(self) -> None:
        """Refuse where another value of the knob would not be another fit."""
        if self.policy is not None:
            raise ValueError(
                f"policy={self.policy!r} has taken the place of {self.knob!r}. Give "
                f"set_policy one with another {self.policy.knob}, or None."
            )

    def _calibrate_with(self, name: str, value: Any) -> Self:
        """Calibrate with another value of a parameter, or leave all as it was."""
        previous = getattr(self, name)
        setattr(self, name, value)
        try:
            return self._calibrate()
        except Exception:
            setattr(self, name, previous)
            raise

    def _final_proba(
        self,
        features: NDArray[Any],
        codes: NDArray[np.intp],
        weight: NDArray[np.float64],
        folds: Folds,
    ) -> NDArray[np.float64]:
        """Probabilities of the last stage for all rows; fits `final_estimator_`."""
        outputs = self.layout_.block(features, self.layout_.n_taps)
        n_classes = len(self.classes_)
        template = self.final_estimator
        if template is None and self.layout_.shared:
            template = LogisticRegression(max_iter=1000)
        if template is None:
            self.final_estimator_ = None
            given = getattr(self.backbone, "classes", None)
            self._output_order = output_order(self.classes_, given, outputs.shape[1])
            check_finite(outputs, "the logits of the backbone", "Check its weights.")
            proba = softmax64(outputs)[:, self._output_order]
            held = folds.calibration
            check_output_order(proba[held].argmax(axis=1), codes[held])
            return proba
        if isinstance(template, FrozenEstimator) and not np.array_equal(
            self.classes_, np.arange(n_classes)
        ):
            raise ValueError(
                "final_estimator is frozen, so it must know the labels as the cascade "
                f"numbers them, but y holds {self.classes_.tolist()[:5]}... and not "
                f"0 to {n_classes - 1}. Number the labels for both, or give a "
                "classifier that may be trained."
            )

        def fitted(rows: NDArray[np.intp]) -> Any:
            if isinstance(template, FrozenEstimator):
                return template
            return fit_with_weights(
                clone(template),
                outputs[rows],
                codes[rows],
                weight[rows],
                "final_estimator",
                "Give one whose fit takes them, or no sample_weight.",
            )

        def answers(estimator: Any, rows: NDArray[np.intp]) -> NDArray[np.float64]:
            return probabilities_of(estimator, n_classes)(as_tensor(outputs[rows]))

        proba = np.full((len(codes), n_classes), 1 / n_classes)
        out_of_fold = folds.pairs if len(folds.pairs) > 1 else []
        label, n_fits = "final estimator", 1 + len(out_of_fold)
        with showing(self.verbose, label), bar(unit="fit", total=n_fits) as shown:
            self.final_estimator_ = fitted(folds.train)
            shown.update()
            if not out_of_fold:
                rows = np.concatenate([folds.train, folds.calibration])
                proba[rows] = answers(self.final_estimator_, rows)
            for train, held in out_of_fold:
                proba[held] = answers(fitted(train), held)
                shown.update()
        return proba

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object: `sample_weight` itself, the rest to `cv`.

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
