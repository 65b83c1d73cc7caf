"""Fold batch normalisation into the convolution before it: a kernel less."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold", "foldable", "hooked"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def foldable(
    nodes: Sequence[fx.Node],
    kept: Collection[fx.Node],
    module_of: Callable[[fx.Node], Any],
) -> dict[fx.Node, fx.Node]:
    """Normalisations among ``nodes`` that the convolution before them can take over.

    Parameters
    ----------
    nodes : sequence of torch.fx.Node
        Nodes of one stage.
    kept : collection of torch.fx.Node
        Nodes whose own values leave the stage and must stay as they are.
    module_of : callable
        From a ``call_module`` node to its module.

    Returns
    -------
    pairs : dict
        From each normalisation to its convolution, in the same stage, whose output
        nothing else uses.
    """
    inside, pairs = set(nodes), {}
    for node in nodes:
        if node.op != "call_module" or type(module_of(node)) not in _NORMS:
            continue
        (layer,) = node.all_input_nodes
        if (
            layer in inside
            and layer not in kept
            and layer.op == "call_module"
            and len(layer.users) == 1
            and _fits(module_of(layer), module_of(node))
        ):
            pairs[node] = layer
    return pairs


def _fits(layer: Any, norm: Any) -> bool:
    pair = (type(layer), type(norm))
    if pair not in zip(_CONVOLUTIONS, _NORMS, strict=True):
        return False
    return norm.running_mean is not None and not (hooked(layer) or hooked(norm))


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches a module's values."""
    # A hook would see the folded value, or none at all.
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fold(layer: Any, norm: Any) -> nn.Module:
    """A copy of ``layer`` that does the work of ``norm``, in eval mode, too."""
    layer, norm = copy.deepcopy(layer).eval(), copy.deepcopy(norm).eval()
    return fuse_conv_bn_eval(layer, norm).requires_grad_(False)
