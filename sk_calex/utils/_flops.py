"""Multiply-accumulates: of a module, of each exit depth, and what exits save.

Counted by torch, heads included; 1 MAC = 2 FLOPs; reductions are the same in both
units; elementwise, pooling and normalisation layers are not counted by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sk_calex.utils._fork import fork_safe_lock
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._packed_conv import flop_formulas

__all__ = ["count_macs", "depth_costs", "flops_reduction"]

# What kernels torch takes for attention is a setting of the whole process.
_counting = fork_safe_lock()


def count_macs(module: nn.Module | Callable[..., object], *inputs: Tensor) -> int:
    """Count the multiply-accumulates (MACs) of one call.

    Parameters
    ----------
    module : torch.nn.Module or callable
        What to call. A module runs in eval and inference mode and gets its
        training flags back; a plain callable runs in inference mode.
    *inputs : torch.Tensor
        Its arguments, on its device. Give one row to get MACs per sample.

    Returns
    -------
    int
        MACs of ``module(*inputs)``, all rows together.

    Notes
    -----
    Counted by torch (`torch.utils.flop_counter`, which reports 2 FLOPs per MAC);
    1 MAC = 2 FLOPs. Convolutions, matrix products and attention are counted;
    elementwise, pooling and normalisation layers are not, nor are operators that
    torch has no formula for (recurrent layers, custom kernels).

    Torch's fused transformer kernels have no formula either: a
    `torch.nn.MultiheadAttention` in eval mode would count as nothing. They are
    switched off for the duration of the count, so attention costs the same on
    every device.

    Examples
    --------
    >>> import torch
    >>> from sk_calex.utils._flops import count_macs
    >>> count_macs(torch.nn.Linear(8, 3), torch.zeros(1, 8))
    24
    """
    with (
        _counting,
        inference_mode_for(module)
        if isinstance(module, nn.Module)
        else torch.inference_mode(),
        _unfused_attention(),
        FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter,
    ):
        module(*inputs)
    return counter.get_total_flops() // 2


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Make attention run as plain matrix products, which the counter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def depth_costs(
    stage_macs: Sequence[float] | npt.ArrayLike,
    head_macs: Sequence[float] | npt.ArrayLike,
) -> npt.NDArray[np.float64]:
    """Cost of one sample by the depth at which it exits.

    Parameters
    ----------
    stage_macs : array-like of shape (K + 1,)
        MACs per sample of each stage of the backbone: up to the first tap,
        between taps, and from the last tap to the backbone's output.
    head_macs : array-like of shape (K,)
        MACs per sample of the head at each tap.

    Returns
    -------
    ndarray of shape (K + 1,), float64
        ``cost[k] = sum(stage_macs[:k + 1]) + sum(head_macs[:k + 1])``; the last
        entry is the cost of a sample that no head answers.

    Raises
    ------
    ValueError
        If the lengths do not match or an entry is negative or not finite.

    Notes
    -----
    Counted by torch, heads included: every head evaluated on the way is paid
    for, the one that answers too (our definition). 1 MAC = 2 FLOPs. Elementwise,
    pooling and normalisation layers are not counted by torch.

    Examples
    --------
    >>> from sk_calex.utils._flops import depth_costs
    >>> depth_costs([10, 20, 30], [1, 2])
    array([11., 33., 63.])
    """
    stages = _macs(stage_macs, "stage_macs")
    heads = _macs(head_macs, "head_macs")
    if len(stages) != len(heads) + 1:
        raise ValueError(
            f"stage_macs has {len(stages)} entries and head_macs {len(heads)}: give "
            "one head per tap, and one stage more than heads (the last stage is the "
            "backbone's own classifier)."
        )
    return np.cumsum(stages) + np.cumsum(np.append(heads, 0.0))


def flops_reduction(
    depth: npt.ArrayLike,
    stage_macs: Sequence[float] | npt.ArrayLike,
    head_macs: Sequence[float] | npt.ArrayLike,
) -> float:
    """Fraction of the plain backbone's cost that these exits save.

    Parameters
    ----------
    depth : array-like of int of shape (n_samples,)
        Exit of each sample: ``k`` for the head at tap ``k``, ``K`` for the
        backbone itself.
    stage_macs : array-like of shape (K + 1,)
        MACs per sample of each stage of the backbone.
    head_macs : array-like of shape (K,)
        MACs per sample of the head at each tap.

    Returns
    -------
    float
        ``1 - mean(depth_costs(...)[depth]) / sum(stage_macs)``. Negative when
        the heads cost more than the exits save.

    Raises
    ------
    ValueError
        If `depth` is empty, not of integers or outside ``0..K``, if the stages
        cost nothing (there is no backbone to compare with), or as in
        `depth_costs`.

    Notes
    -----
    Counted by torch, heads included, against the plain backbone, which has no
    heads (our definition). 1 MAC = 2 FLOPs, so the reduction is the same in both
    units. Elementwise, pooling and normalisation layers are not counted by torch.

    Examples
    --------
    >>> from sk_calex.utils._flops import flops_reduction
    >>> flops_reduction([0, 0, 1], [40, 60], [5])
    0.35
    """
    cost = depth_costs(stage_macs, head_macs)
    total = _macs(stage_macs, "stage_macs").sum()
    if total == 0:
        raise ValueError(
            "stage_macs sums to 0: a reduction needs a backbone that costs something. "
            "Torch counts convolutions, matrix products and attention; for a "
            "backbone without any, give costs of your own (seconds, for instance)."
        )
    exits = np.asarray(depth)
    if exits.ndim != 1 or exits.size == 0 or exits.dtype.kind not in "iu":
        raise ValueError(
            "depth must be a non-empty 1-D array of integers, one exit per sample; "
            f"got shape {exits.shape} and dtype {exits.dtype}."
        )
    if exits.min() < 0 or exits.max() >= len(cost):
        raise ValueError(
            f"depth must lie in 0..{len(cost) - 1} (there are {len(cost) - 1} heads); "
            f"got values from {exits.min()} to {exits.max()}."
        )
    return float(1.0 - cost[exits].mean() / total)


def _macs(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    macs = np.asarray(values, dtype=np.float64)
    if macs.ndim != 1:
        raise ValueError(f"{name} must be 1-D; got shape {macs.shape}.")
    if not np.all(np.isfinite(macs)) or np.any(macs < 0):
        raise ValueError(
            f"{name} must be finite and not negative; got {macs.tolist()}."
        )
    return macs
