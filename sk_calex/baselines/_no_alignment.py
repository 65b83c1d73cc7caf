"""The reference: CalexNet's branches without what makes CalexNet."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sklearn.utils._param_validation import Interval

from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.cascade._alignment import SurvivorAlignment
from sk_calex.cascade._cascade import CascadeClassifier
from sk_calex.utils._codec import savable

__all__ = ["NoAlignmentClassifier"]


@savable
class NoAlignmentClassifier(CascadeClassifier):
    """The reference that has neither alignment nor soft targets.

    Every branch is trained and calibrated on all samples, as if nothing exited before
    it. What a `CascadeClassifier` with the same calibrator, but ``calibrate_on=
    "survivors"``, gains over it at the same margin is due to its alignment, its targets
    and its calibration rows.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    margin : float or "auto", default=-0.15
        The knob: how much precision each class may give up against the backbone's, as
        of `CascadeClassifier`.
    branch : classifier or list of classifiers, default=None
        Template of the branches. None chooses by cost, as `CascadeClassifier` does.
    min_support : float, default=10
        Calibration samples (total weight) that must stand at or above a threshold.
    final_estimator : classifier, default=None
        Trained on the backbone's outputs and answering in its place: for a backbone
        that never saw the classes.
    calibrator : ExitPolicy, default=None
        Exit rule in place of the method's own, as of `CascadeClassifier`.
    max_accuracy_drop : float, default=0.005
        With ``margin="auto"``: accuracy that may be lost against the last stage
        alone, as of `CascadeClassifier`.
    cv : float, int or splitter, default=0.2
        What calibrates, as of `CascadeClassifier`.
    costs : array-like of shape (n_branches + 1,) or dict, default=None
        Cost of an answer at each depth in another unit than MACs, as of
        `CascadeClassifier`.
    input : {"samples", "features"}, default="samples"
        What `X` holds: samples, or the output of `FrozenBackbone.transform`, for fits
        that share it.
    memory : str or joblib.Memory, default=None
        Folder where fitted branches are cached, for several processes or sessions; None
        keeps none.
    n_jobs : int, default=None
        Folds trained at once, by joblib: None is one after the other, -1 uses all
        processors.
    random_state : int, RandomState instance or None, default=None
        Seed of the split and of branches that have none of their own.
    verbose : int, default=0
        1 shows progress bars on stderr, as of `CascadeClassifier`; 0 shows nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    branches_ : list of classifiers
        The trained branches, on class codes ``0 .. n_classes - 1``.
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Confidence at which a sample predicted as a class exits; ``inf`` where disabled.
    depth_costs_ : ndarray of float64, shape (n_branches + 1,)
        MACs of an answer at each depth, heads included.
    enabled_, precision_, support_, reference_precision_, effective_sample_size_
        As of `CascadeClassifier`.
    training_profile_, backbone_, final_estimator_, calibrator_, layout_, n_features_in_
        As of `CascadeClassifier`.

    Notes
    -----
    With z_k the logits of branch k and z_B those of the backbone:

        loss_k = mean over all x of CE(z_k(x), argmax z_B(x))
        exit at the first k with max p_k >= tau[k, c_k],  c_k = argmax p_k

    where tau[k, c] is the smallest threshold at which the held-out samples, all of
    them, that are predicted as c keep the precision that the margin demands. It is
    `CascadeClassifier` with these settings, bit for bit:

        alignment="none", targets="argmax",
        calibrator=SurvivorThresholdCalibrator(
            margin_mode="relative", calibrate_on="all"
        )

    The comparison that the paper names "no alignment, no distillation" (Aperstein &
    Apartsin 2026); the margins and their thresholds are as of `CascadeClassifier`.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import NoAlignmentClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = NoAlignmentClassifier(random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.2)  # no refit
    """

    # What makes the reference: no parameters here.
    targets = "argmax"
    ensemble = False
    alpha = None

    _parameter_constraints: dict[str, list[Any]] = {
        name: constraint
        for name, constraint in CascadeClassifier._parameter_constraints.items()
        if name not in ("alignment", "targets", "alpha", "ensemble")
    } | {"min_support": [Interval(Real, 0, None, closed="left")]}

    def __init__(
        self,
        backbone: Any = None,
        *,
        margin: float | str = -0.15,
        branch: Any = None,
        min_support: float = 10,
        final_estimator: Any = None,
        calibrator: ExitPolicy | None = None,
        max_accuracy_drop: float = 0.005,
        cv: Any = 0.2,
        costs: Any = None,
        input: str = "samples",
        memory: Any = None,
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.margin = margin
        self.branch = branch
        self.min_support = min_support
        self.final_estimator = final_estimator
        self.calibrator = calibrator
        self.max_accuracy_drop = max_accuracy_drop
        self.cv = cv
        self.costs = costs
        self.input = input
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _rule(self) -> SurvivorThresholdCalibrator:
        return SurvivorThresholdCalibrator(
            self.margin,
            margin_mode="relative",
            min_support=self.min_support,
            calibrate_on="all",
        )

    def _alignment(self) -> SurvivorAlignment:
        return SurvivorAlignment("none")

    def _split_params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        trained, moved = super()._split_params()
        # Without survivor weights no threshold reaches the training.
        moved["min_support"] = trained.pop("min_support")
        return trained, moved
