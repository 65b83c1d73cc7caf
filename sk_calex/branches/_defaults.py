"""Choose branches whose cost suits what they can save, and warn of costly ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression

from sk_calex.branches._branches import BranchClassifier, PrototypePoolingClassifier
from sk_calex.branches._heads import build_head, fuse_for_inference
from sk_calex.utils._flops import count_macs
from sk_calex.utils._warn import warn_caller

__all__ = [
    "BranchCostWarning",
    "count_unfitted",
    "default_branch_for",
    "default_branches",
    "warn_of_costly_branches",
]

# A branch pays where it exits more samples than its cost is a share of what follows its
# tap: at a twentieth, one exit in twenty pays for the branch.
_SHARE_OF_SAVED = 0.05
# From rich to cheap: channels of the trunk's two layers.
_WIDTHS = (96, 128), (48, 64), (24, 32)
_COSTLY = 0.1


class BranchCostWarning(UserWarning):
    """Warn that the branches of a cascade cost a large part of its backbone."""


def default_branches(
    shapes: Sequence[tuple[int, ...]],
    stage_macs: Sequence[float] | None,
    n_classes: int,
) -> list[Any]:
    """Choose a branch for each tap of a backbone.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap, in cascade order.
    stage_macs : sequence of float or None
        MACs per sample of each stage, one more than there are taps. None: unknown.
    n_classes : int
        Number of classes.

    Returns
    -------
    branches : list of classifiers
        Unfitted, one for each tap; see `default_branch_for`.
    """
    saved = [
        None if stage_macs is None else float(sum(stage_macs[k + 1 :]))
        for k in range(len(shapes))
    ]
    return [
        default_branch_for(shape, n_classes, macs)
        for shape, macs in zip(shapes, saved, strict=True)
    ]


def default_branch_for(
    shape: tuple[int, ...], n_classes: int, macs_saved: float | None
) -> Any:
    """Choose the richest branch that costs at most a twentieth of what an exit saves.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample's features: (C, H, W), (L, D) or (D,).
    n_classes : int
        Number of classes, at least 2.
    macs_saved : float or None
        MACs per sample of all that follows the tap, which an exit there saves. None:
        unknown, and then the richest branch is taken.

    Returns
    -------
    branch : classifier
        Unfitted. For maps and tokens a `PrototypePoolingClassifier` with a trunk of
        widths (96, 128), (48, 64) or (24, 32), the first whose MACs are few enough, or
        a ``BranchClassifier("gap")``, the cheapest head, where none is. For vectors a
        `LogisticRegression`.

    Notes
    -----
    Our definition. The limit is where one exit in twenty pays for the branch, so that
    three branches at even distances cost at most about 7 % of the backbone.

    Examples
    --------
    >>> from sk_calex.branches._defaults import default_branch_for
    >>> default_branch_for((256, 14, 14), 10, macs_saved=1e9)
    PrototypePoolingClassifier()
    >>> default_branch_for((40, 14, 14), 10, macs_saved=1e7)
    BranchClassifier(head='gap')
    >>> default_branch_for((20,), 10, macs_saved=None)
    LogisticRegression(max_iter=1000)
    """
    if len(shape) == 1:
        return LogisticRegression(max_iter=1000)
    for widths in _WIDTHS:
        branch = PrototypePoolingClassifier(widths=widths)
        if macs_saved is None:
            return branch
        limit = _SHARE_OF_SAVED * macs_saved
        if _count_trunk_macs(shape, widths) > limit:
            continue  # the whole head costs more still, and takes longer to build
        if count_unfitted(branch, shape, n_classes) <= limit:
            return branch
    return BranchClassifier("gap")


def count_unfitted(branch: Any, shape: tuple[int, ...], n_classes: int) -> int:
    """Count the MACs of one answer of a default branch, before it is fitted.

    Parameters
    ----------
    branch : classifier
        One that `default_branch_for` returns.
    shape : tuple of int
        Shape of one sample's features.
    n_classes : int
        Number of classes.

    Returns
    -------
    macs : int
        Multiply-accumulates, as after a fit.

    Examples
    --------
    >>> from sk_calex.branches import BranchClassifier
    >>> from sk_calex.branches._defaults import count_unfitted
    >>> count_unfitted(BranchClassifier("gap"), (64, 8, 8), 10)
    640
    """
    if isinstance(branch, LogisticRegression):
        return math.prod(shape) * (n_classes if n_classes > 2 else 1)
    if isinstance(branch, PrototypePoolingClassifier):
        head = build_head("prototype_augmented", shape, n_classes, widths=branch.widths)
    else:
        head = build_head(branch.head, shape, n_classes)
    example = torch.zeros(1, *shape, dtype=head.dtype)
    return count_macs(fuse_for_inference(head), example)


def _count_trunk_macs(shape: tuple[int, ...], widths: Sequence[int]) -> int:
    """Count MACs of a trunk's layers: 3x3 convolutions on maps, linear on tokens."""
    is_map = len(shape) == 3
    n_in, positions = (shape[0], shape[1:]) if is_map else (shape[-1], shape[:1])
    if is_map and min(positions) > 4:
        positions = tuple(-(-side // 2) for side in positions)
    per_position = 0
    for width in widths:
        per_position += n_in * width * (9 if is_map else 1)
        n_in = width
    return per_position * math.prod(positions)


def warn_of_costly_branches(
    branch_macs: Sequence[float], stage_macs: Sequence[float]
) -> None:
    """Warn where all branches together cost more than a tenth of the backbone.

    Parameters
    ----------
    branch_macs : sequence of float
        MACs per sample of each branch.
    stage_macs : sequence of float
        MACs per sample of each stage of the backbone.
    """
    total, backbone = sum(branch_macs), sum(stage_macs)
    if total <= _COSTLY * backbone:
        return
    each = ", ".join(f"{macs:,.0f}" for macs in branch_macs)
    part = f"{total / backbone:.0%}" if backbone > 0 else "more than all"
    warn_caller(
        f"the branches cost {part} of the backbone: {each} MACs, the backbone "
        f"{backbone:,.0f}. A sample that no branch answers pays for all of them. Give "
        "cheaper branches, such as branch=BranchClassifier('gap') or "
        "PrototypePoolingClassifier(widths=(24, 32)), or fewer taps; branch=None "
        "chooses by cost. Where it is time that counts, give costs=measure_costs("
        "cascade, X).",
        BranchCostWarning,
    )
