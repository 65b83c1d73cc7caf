"""Multiply-accumulates: of a module, of each exit depth, and what exits save.

Counted with torch's formulas and ours, heads included; 1 MAC = 2 FLOPs; reductions are
the same in both units; elementwise, pooling and normalisation layers count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sk_calex.utils._flop_formulas import all_formulas
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._warn import warn_caller

__all__ = [
    "MacCount",
    "checked_macs",
    "count_macs",
    "depth_costs",
    "flops_reduction",
    "unchecked_macs",
]

# Parts of the names of torch's own operators that multiply by a weight. One of these
# without a formula is a gap; a look-up, a norm or a copy of a weight is not.
_PRODUCTS = ("mm", "mv", "matmul", "linear", "conv", "attention", "rnn", "lstm", "gru")
# What other libraries' operators do with a weight without multiplying by it.
_CONVERSIONS = ("quantize_per", "prepack", "unpack")


@dataclass(frozen=True)
class MacCount:
    """MACs of one call, and the weights that they may lack.

    Parameters
    ----------
    macs : int
        Multiply-accumulates of the operators that have a formula.
    missing : tuple of str
        One text for each operator that was given weights and has no formula.
    """

    macs: int
    missing: tuple[str, ...] = ()


def count_macs(module: nn.Module | Callable[..., object], *inputs: Any) -> int:
    """Count the multiply-accumulates (MACs) of one call.

    Parameters
    ----------
    module : torch.nn.Module or callable
        What to call. A module runs in eval mode and gets its training flags back.
        Gradients are off.
    *inputs : torch.Tensor, or list, tuple or dict of tensors
        Its arguments, on its device. Give one row to get MACs per sample. Copies are
        passed on, which layers may write to.

    Returns
    -------
    int
        MACs of ``module(*inputs)``, all rows together.

    Raises
    ------
    ValueError
        If a module with weights counts 0 because no operator that uses them has a
        formula.

    Warns
    -----
    UserWarning
        If some operator that uses weights has no formula; its layers are named.

    Notes
    -----
    Formulas are torch's (`torch.utils.flop_counter`, 2 FLOPs per MAC), and ours for
    matrix-vector products, fused attention, recurrent and quantised layers.
    Elementwise, pooling, normalisation and look-up layers count as 0. Register a
    formula for an operator of your own with
    ``torch.utils.flop_counter.register_flop_formula``; it is used here as well.

    No setting of the process changes and no hook is set, so other threads may run the
    same module meanwhile.

    Examples
    --------
    >>> import torch
    >>> from sk_calex.utils._flops import count_macs
    >>> count_macs(torch.nn.Linear(8, 3), torch.zeros(1, 8))
    24
    """
    return checked_macs([unchecked_macs(module, *inputs)])[0]


def unchecked_macs(
    module: nn.Module | Callable[..., object],
    *inputs: Any,
    weights_of: nn.Module | None = None,
) -> MacCount:
    """Count the MACs of one call, and note what has no formula.

    Parameters
    ----------
    module : torch.nn.Module or callable
        As in `count_macs`.
    *inputs : torch.Tensor, or list, tuple or dict of tensors
        As in `count_macs`.
    weights_of : torch.nn.Module, default=None
        The module whose layers a callable uses, to name those that are not counted.

    Returns
    -------
    MacCount
        For `checked_macs`.
    """
    with ExitStack() as stack:
        if isinstance(module, nn.Module):
            stack.enter_context(inference_mode_for(module))
        # Inference tensors reach the counter as whole layers, without the products
        # that those consist of: count on ordinary copies, outside of inference mode.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        copies = tree_map(_copied, inputs)
        counter = _MacCounter(module if weights_of is None else weights_of)
        with counter:
            module(*copies)
    return MacCount(counter.flops // 2, counter.missing(whole=weights_of is None))


def checked_macs(counts: Sequence[MacCount]) -> list[int]:
    """Return the MACs of the parts of a module, if they can be trusted.

    Parameters
    ----------
    counts : sequence of MacCount
        From `unchecked_macs`, one for each part.

    Returns
    -------
    list of int
        MACs of each part.

    Raises
    ------
    ValueError
        If all parts count 0 although weights are used.

    Warns
    -----
    UserWarning
        If weights are used by an operator that has no formula.
    """
    macs = [count.macs for count in counts]
    missing = list(dict.fromkeys(text for count in counts for text in count.missing))
    if missing:
        advice = (
            "FLOPs cannot be counted without a formula: "
            f"{'; '.join(missing)}. Register one for the operator with "
            "torch.utils.flop_counter.register_flop_formula before fit"
        )
        if not any(macs):
            raise ValueError(
                f"{advice}: the module has weights, but its count is 0, and so would "
                "be every cost."
            )
        warn_caller(f"{advice}: it counts as 0 MACs.", UserWarning)
    return macs


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _MacCounter(TorchDispatchMode):
    """Adds up the FLOPs of each operator that this thread runs.

    `torch.utils.flop_counter.FlopCounterMode` does so too, but sets hooks on the
    modules of all threads, which fail in the others.
    """

    # Flex attention is such an operator; it has a formula.
    supports_higher_order_operators = True

    def __init__(self, module: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._formulas = all_formulas()
        self._weights: dict[int, str] = {}
        self._used: set[int] = set()
        self._missing: dict[str, list[str]] = {}
        if isinstance(module, nn.Module):
            self._weights = {_place(w): name for name, w in _matrices(module)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = getattr(func, "_overloadpacket", func)
        used = {_place(x) for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        if not getattr(func, "is_view", False):
            self._used |= used
        formula = self._formulas.get(operator)
        if formula is None and hasattr(func, "decompose"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        elif _multiplies(func):
            layers = [self._weights[x] for x in sorted(used) if x in self._weights]
            packed = [x for x in tree_leaves(args) if isinstance(x, torch.ScriptObject)]
            if layers or packed:
                known = self._missing.setdefault(str(operator), [])
                known += [x for x in layers if x not in known]
        return result

    def missing(self, whole: bool) -> tuple[str, ...]:
        """Describe what used weights without a formula, in a part or the whole."""
        found = [
            f"operator {operator} (layers: {', '.join(layers) or 'packed weights'})"
            for operator, layers in self._missing.items()
        ]
        unused = [name for x, name in self._weights.items() if x not in self._used]
        if whole and unused and not self.flops:
            found.append(f"code that torch does not see (layers: {', '.join(unused)})")
        return tuple(found)


def _matrices(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List weights that are made to be multiplied by, with the name of their layer."""
    for name, layer in module.named_modules():
        for key, weight in layer.named_parameters(recurse=False):
            if weight.ndim >= 2:
                yield name or key, weight


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _place(tensor: Tensor) -> int:
    """Tell tensors on the same memory from others: views are still the weight."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # packed or sparse: no such memory
        return id(tensor)


def _multiplies(func: Any) -> bool:
    """Tell whether an operator may multiply by a weight, by its name."""
    if isinstance(func, torch._ops.HigherOrderOperator):
        return True
    if func.is_view or torch.Tag.pointwise in func.tags:
        return False
    library, _, name = func._schema.name.partition("::")
    if library == "aten":
        return any(part in name for part in _PRODUCTS)
    return library != "prims" and not any(part in name for part in _CONVERSIONS)


def depth_costs(
    stage_macs: Sequence[float] | npt.ArrayLike,
    head_macs: Sequence[float] | npt.ArrayLike,
) -> npt.NDArray[np.float64]:
    """Compute the cost of one sample by the depth at which it exits.

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
    """Compute the share of the plain backbone's cost that these exits save.

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
