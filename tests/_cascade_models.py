"""A small network that is right most of the time, and easy and hard images for it."""

from functools import cache

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
)
from tests._models import TinyNet

TAPS = ["stem", "block1"]
#: Per sample, by hand: 3x3 convolutions on 16x16, 8x8 and 4x4, and the classifier.
STAGE_MACS = (256 * 9 * 3 * 4, 64 * 9 * 4 * 8, 16 * 9 * 8 * 16 + 16 * 3)


def images(n, seed=0, n_classes=3):
    """Images whose stripes and colour tell the class, under noise of several levels."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    wave = np.sin(np.arange(16) * np.pi / 2)
    patterns = np.zeros((n_classes, 3, 16, 16))
    for c in range(n_classes):
        stripes = wave[:, None] if c % 2 else wave[None, :]
        patterns[c, c % 3] = stripes + 0.3 * (c // 3)
    level = rng.choice([0.25, 0.5, 2.0], size=(n, 1, 1, 1))
    X = patterns[y] + level * rng.standard_normal((n, 3, 16, 16))
    return X.astype(np.float32), y


@cache
def tiny_net(n_outputs=3):
    """Random convolutions under statistics and a classifier fitted to `images`."""
    net = TinyNet(n_outputs, seed=1).train()
    X, y = images(600, seed=99, n_classes=n_outputs)
    for norm in (net.stem[1], net.block1[1], net.block2[1]):
        norm.momentum = 1.0  # statistics of the one batch
    with torch.no_grad():
        net(torch.from_numpy(X))
        x = net.eval().block2(net.block1(net.stem(torch.from_numpy(X))))
        pooled = net.head[:2](x).numpy()
    fitted = converged_regression(C=100).fit(pooled, y)
    with torch.no_grad():
        net.head[2].weight.copy_(torch.from_numpy(fitted.coef_))
        net.head[2].bias.copy_(torch.from_numpy(fitted.intercept_))
    return net.train()  # the backbone has to see to eval mode itself


class _RegressionInFloat64(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        return super().fit(np.asarray(X, dtype=np.float64), y, sample_weight)


def converged_regression(**params):
    """Make a classifier that is fitted to its optimum on every CPU.

    Solvers that stop early stop elsewhere on each CPU. Newton's method in float64 does
    not: its logits move by about 1e-6 when the features move by 1e-7.
    """
    params = {"solver": "newton-cholesky", "tol": 1e-8} | params
    return _RegressionInFloat64(**params)


def tiny_backbone(n_outputs=3, **params):
    """A backbone around `tiny_net`."""
    params = {"taps": TAPS, "pool": 4, "device": "cpu"} | params
    return FrozenBackbone(tiny_net(n_outputs), **params)


def small_branch(head="conv", **params):
    """A torch branch that is trained in milliseconds."""
    small = {"conv": {"widths": (6,)}, "prototype_augmented": {"widths": (6,)}}
    params = {
        "head_params": small.get(head),
        "max_iter": 8,
        "solver": "lbfgs",
        "random_state": 0,
        "device": "cpu",
    } | params
    return BranchClassifier(head, **params)


def composed(**flat):
    """Parameters of a `CascadeClassifier`, with its parts made of flat settings.

    Those of the calibrator by their names, those of the alignment as
    ``alignment_margin`` etc.
    """
    own = ("margin_mode", "min_support", "rule", "shrinkage", "calibrate_on")
    chosen = {name: flat.pop(name) for name in own if name in flat}
    if chosen and flat.get("calibrator") is None:
        chosen = {"margin_mode": "local"} | chosen
        flat["calibrator"] = SurvivorThresholdCalibrator(**chosen)
    parts = {
        name.removeprefix("alignment_"): flat.pop(name)
        for name in list(flat)
        if name.startswith("alignment_") or name == "cross_fit"
    }
    if parts:
        parts = {"kind": flat.pop("alignment", "soft")} | parts
        flat["alignment"] = SurvivorAlignment(**parts)
    return flat


def flat_cascade(backbone=None, **flat):
    """A `CascadeClassifier` of flat settings, see `composed`.

    At a margin that lets samples exit, which the tests' few rows could not justify.
    """
    params = composed(**flat)
    rule = params.get("calibrator")
    if rule is None or isinstance(rule, SurvivorThresholdCalibrator):
        params = {"margin": 0.05} | params
    return CascadeClassifier(backbone, **params)
