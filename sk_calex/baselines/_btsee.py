"""BTS-EE, the earlier form of CalexNet."""

from __future__ import annotations

from typing import Any

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._branches import BranchClassifier
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.cascade._alignment import SurvivorAlignment
from sk_calex.cascade._cascade import CascadeClassifier
from sk_calex.utils._codec import savable

__all__ = ["BTSEEClassifier"]


@savable
class BTSEEClassifier(CascadeClassifier):
    """BTS-EE: branches trained on the survivors alone, on the backbone's answers.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    margin : float or "auto", default=-0.15
        The knob: how much precision each class may give up against the backbone's, as
        of `CascadeClassifier`.
    alignment_margin : float or "same", default=-0.1
        Margin of the thresholds that say which samples survive an earlier branch in
        training. "same" uses `margin`; another margin then needs another fit.
    branch : classifier or list of classifiers, default=None
        Template of the branches. None means ``BranchClassifier("conv1d")``.
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
    With S_k the samples that no branch before k answers, z_k the logits of branch k and
    z_B those of the backbone:

        loss_k = mean over x in S_k of CE(z_k(x), argmax z_B(x))
        exit at the first k with max p_k >= tau[k, c_k],  c_k = argmax p_k

    where tau[k, c] is the smallest threshold at which the held-out samples in S_k that
    are predicted as c keep the precision that the margin demands. It is
    `CascadeClassifier` with these settings, bit for bit:

        branch=BranchClassifier("conv1d"), targets="argmax",
        alignment=SurvivorAlignment("hard", margin=-0.1),
        calibrator=SurvivorThresholdCalibrator(margin_mode="relative")

    After the description of the first version of the paper: the survivor subset, the
    answers of the backbone as labels, the class-precision margin and the 1-D
    convolution are the paper's, the details of the head our definition. So is the
    default of `alignment_margin`, a number, so that one fit serves all margins.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2025). arXiv 2509.08318, version 1.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import BTSEEClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = BTSEEClassifier(random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.2)  # no refit
    """

    # What makes the method: no parameters here.
    targets = "argmax"
    ensemble = False
    alpha = None
    _margin_of_alignment = "alignment_margin"

    _parameter_constraints: dict[str, list[Any]] = {
        name: constraint
        for name, constraint in CascadeClassifier._parameter_constraints.items()
        if name not in ("alignment", "targets", "alpha", "ensemble")
    } | {
        "alignment_margin": SurvivorAlignment._parameter_constraints["margin"],
        "min_support": SurvivorThresholdCalibrator._parameter_constraints[
            "min_support"
        ],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        margin: float | str = -0.15,
        alignment_margin: float | str = -0.1,
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
        self.alignment_margin = alignment_margin
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
            self.margin, margin_mode="relative", min_support=self.min_support
        )

    def _alignment(self) -> SurvivorAlignment:
        return SurvivorAlignment("hard", margin=self.alignment_margin)

    def _default_on_vectors(self) -> Any:
        return BranchClassifier("conv1d")

    def _default_branch(self, layout: TapLayout) -> Any:
        return self._default_on_vectors()
