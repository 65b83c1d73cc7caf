"""Branch heads: small torch modules from a tap's features to class logits.

Every head takes ``(n, *feature_shape)`` and gives ``(n, n_classes)``. Inside, features
are one thing, a map ``(n, C, H, W)``: tokens ``(n, L, D)`` become the channels-last map
``(n, D, L, 1)`` without a copy, a flat vector is one token, and "positions" are the
``H * W`` places of the map. The heads are re-implementations from the published
descriptions; what those leave open is our definition and marked so.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sk_calex.utils._packed_conv import pack

from ._layers import (
    Block,
    BranchHead,
    WeightedBatchNorm,
    draw,
    integer,
    integers,
    linear,
    max_over_positions,
    mixed_pool,
    pooled_grid,
    seeded,
    trunk,
)
from ._prototype_heads import PrototypeAugmentedHead, PrototypeHead

_Module = TypeVar("_Module", bound=nn.Module)

__all__ = [
    "HEADS",
    "BranchHead",
    "Conv1dHead",
    "ConvHead",
    "GAPHead",
    "PrototypeAugmentedHead",
    "PrototypeHead",
    "SDNHead",
    "WeightedBatchNorm",
    "build_head",
    "fuse_for_inference",
]


class GAPHead(BranchHead):
    """Normalise, average over the positions, and classify linearly.

    Examples
    --------
    >>> import torch
    >>> head = build_head("gap", (16, 4, 4), 10)
    >>> head(torch.zeros(2, 16, 4, 4)).shape
    torch.Size([2, 10])
    """

    is_linear: ClassVar[bool] = True

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        self.norm: WeightedBatchNorm | None = WeightedBatchNorm(self.in_channels)
        self.classifier = linear(self.in_channels, self.n_classes, generator)

    def _logits(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        return self.classifier(x.mean((2, 3)))

    def fold_(self) -> None:
        """Move the normalisation into the classifier."""
        if self.norm is None:
            return
        scale, shift = self.norm.affine()
        weight = self.classifier.weight
        self.classifier.bias = nn.Parameter(self.classifier.bias + weight @ shift)
        self.classifier.weight = nn.Parameter(weight * scale)
        self.norm = None


class SDNHead(BranchHead):
    """Pool mean and maximum to a small grid, and classify linearly.

    Notes
    -----
    ``alpha max + (1 - alpha) mean`` over the cells of a grid of at most 4 x 4 (at most
    16 cells of tokens, our definition), ``alpha`` learned from 0.5 and unbounded: the
    pooling of Kaya et al. (2019), after their public code.

    Examples
    --------
    >>> import torch
    >>> head = build_head("sdn", (16, 8, 8), 10)
    >>> head.classifier.in_features == 16 * 4 * 4
    True
    """

    is_linear: ClassVar[bool] = True

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        self.grid = pooled_grid(self.feature_shape)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        n_features = self.in_channels * self.grid[0] * self.grid[1]
        self.classifier = linear(n_features, self.n_classes, generator)

    def _logits(self, x: Tensor) -> Tensor:
        return self.classifier(mixed_pool(x, self.grid, self.alpha))


class Conv1dHead(BranchHead):
    """Convolve along the sequence of positions, average, and classify linearly.

    Parameters
    ----------
    feature_shape, n_classes
        As of `BranchHead`.
    width : int, default=64
        Number of channels of the convolution, which has kernel 3 and is followed by
        batch normalisation and ReLU.
    generator : torch.Generator
        Source of the initial parameters.

    Notes
    -----
    BTS-EE's head is "1-D convolution" by its description; the details are our
    definition. Maps are read row by row.

    Examples
    --------
    >>> import torch
    >>> head = build_head("conv1d", (16, 4, 4), 10, width=8)
    >>> head(torch.zeros(2, 16, 4, 4)).shape
    torch.Size([2, 10])
    """

    full_batch_rate: ClassVar[float] = 2e-2

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        width: int = 64,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        width = integer("width", width)
        conv = skip_init(nn.Conv1d, self.in_channels, width, 3, padding=1, bias=False)
        self.body = Block(draw(conv, generator))
        self.classifier = linear(width, self.n_classes, generator)

    def _logits(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x.flatten(2)).mean(2))


class ConvHead(BranchHead):
    """Run a light trunk, pool mean and maximum, and classify linearly.

    Parameters
    ----------
    feature_shape, n_classes
        As of `BranchHead`.
    widths : tuple of int, default=(96, 128)
        Channels of the trunk's layers, at least one: bias-free 3x3 convolutions on
        maps, linear layers at each position on tokens and vectors; each with batch
        normalisation and ReLU. The first convolution has stride 2 where both sides of
        the map exceed 4.
    generator : torch.Generator
        Source of the initial parameters.

    Notes
    -----
    Our definition.

    Examples
    --------
    >>> import torch
    >>> head = build_head("conv", (16, 8, 8), 10, widths=(24, 32))
    >>> head(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        widths: Sequence[int] = (96, 128),
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        widths = integers("widths", widths, 1)
        self.body = trunk(self.feature_shape, widths, generator)
        self.classifier = linear(2 * widths[-1], self.n_classes, generator)

    def _logits(self, x: Tensor) -> Tensor:
        u = self.body(x)
        return self.classifier(torch.cat([u.mean((2, 3)), max_over_positions(u)], 1))


#: The heads by name; `build_head` looks here.
HEADS: dict[str, type[BranchHead]] = {
    "gap": GAPHead,
    "sdn": SDNHead,
    "conv1d": Conv1dHead,
    "conv": ConvHead,
    "prototype": PrototypeHead,
    "prototype_augmented": PrototypeAugmentedHead,
}


def build_head(
    name: str,
    feature_shape: Sequence[int],
    n_classes: int,
    *,
    generator: torch.Generator | None = None,
    **params: Any,
) -> BranchHead:
    """Build a branch head by name.

    Parameters
    ----------
    name : str
        A key of `HEADS`.
    feature_shape : tuple of int
        Shape of one sample's features: (C, H, W), (L, D) tokens or (D,).
    n_classes : int
        Number of classes, at least 2.
    generator : torch.Generator, default=None
        CPU generator of the initial parameters; None: a fresh one with seed 0. The
        global random state is neither read nor changed.
    **params
        Parameters of the head's class.

    Returns
    -------
    BranchHead
        In train mode, on the CPU, in torch's default dtype.

    Raises
    ------
    ValueError
        If a name or value is not accepted.
    TypeError
        If the head has no such parameter.

    Examples
    --------
    >>> import torch
    >>> head = build_head("conv", (64, 8, 8), 20, widths=(32,))
    >>> head(torch.zeros(5, 64, 8, 8)).shape
    torch.Size([5, 20])
    """
    if name not in HEADS:
        raise ValueError(f"name must be one of {sorted(HEADS)}, got {name!r}.")
    device = getattr(generator, "device", None)
    if generator is not None and device != torch.device("cpu"):
        raise ValueError(
            f"generator must be a torch.Generator on the CPU or None, got "
            f"{generator!r}; the head can be moved with .to(device) afterwards."
        )
    cls = HEADS[name]
    accepted = [
        key
        for key, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key != "generator"
    ]
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise TypeError(
            f"the head {name!r} has no parameter {', '.join(map(repr, unknown))}; it "
            f"takes {', '.join(accepted) or 'none'}."
        )
    make = cast(Callable[..., BranchHead], cls)
    return make(feature_shape, n_classes, generator=seeded(generator), **params)


@torch.no_grad()
def fuse_for_inference(head: _Module) -> _Module:
    """Copy trained heads into ones that give the same logits with fewer operations.

    Batch normalisation is folded into the layer before it (of "gap": after it),
    prototypes are normalised once, and the weights of convolutions are packed. The copy
    is in eval mode and cannot be trained.

    Parameters
    ----------
    head : BranchHead or torch.nn.Module
        A trained head, or a module with trained heads inside; not changed.

    Returns
    -------
    BranchHead or torch.nn.Module
        The copy, on the same device, in the same dtype.

    Examples
    --------
    >>> import torch
    >>> head = build_head("conv", (16, 8, 8), 10).eval()
    >>> x = torch.ones(1, 16, 8, 8)
    >>> torch.allclose(fuse_for_inference(head)(x), head(x), atol=1e-5)
    True
    """
    fused = copy.deepcopy(head).eval()
    for module in list(fused.modules()):
        fold = getattr(module, "fold_", None)
        if fold is not None:
            fold()
    for module in list(fused.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, pack(child))
    fused.zero_grad(set_to_none=True)
    return fused.requires_grad_(False)
