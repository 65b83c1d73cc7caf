"""Base and layers of the branch heads: normalisation with row weights, blocks.

A layer has a ``fold_`` where it can be made cheaper once training is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

__all__ = ["BranchHead", "WeightedBatchNorm"]

_Layer = TypeVar("_Layer", bound=nn.Module)

# Half the width of the band in which a slope goes from 0 to 1, in units of the
# activations, which batch normalisation brings to a standard deviation near 1.
_SMOOTHING = 0.1
_smoothed: ContextVar[bool] = ContextVar("smoothed", default=False)


@contextmanager
def smooth_gradients() -> Iterator[None]:
    """Let `relu` and the maxima have continuous gradients in this block.

    The values stay those of the plain functions. The gradient of a rectifier jumps at
    0, and that of a maximum where another position takes the lead: an input that moves
    by 1e-7 across such a point moves a full-batch gradient by a whole row's share, and
    that ends in other probabilities. A slope that changes over a band of width 0.2
    (our definition) moves by no more than five times what the input does.
    """
    token = _smoothed.set(True)
    try:
        yield
    finally:
        _smoothed.reset(token)


def _gradients_are_smooth() -> bool:
    # A compiled head is a trained one, and torch 2.6 cannot compile a context variable.
    return not torch.compiler.is_compiling() and _smoothed.get()


class _SmoothSlopeReLU(torch.autograd.Function):
    """Compute ``max(x, 0)`` with a slope that rises from 0 to 1 in a band around 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (0.5 + x / (2 * _SMOOTHING)).clamp(0, 1)


def relu(x: Tensor) -> Tensor:
    """Apply ReLU, in place where the gradient need not be smooth."""
    if _gradients_are_smooth():
        return cast(Tensor, _SmoothSlopeReLU.apply(x))
    return F.relu(x, inplace=True)


def max_pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Take the maximum over each cell of a grid."""
    largest = F.adaptive_max_pool2d(x, grid)
    if not _gradients_are_smooth():
        return largest
    # The gradient of a soft maximum, log-mean-exp, on the value of the hard one.
    above = (x - x.detach().amax((2, 3), keepdim=True)) / _SMOOTHING
    mean = F.adaptive_avg_pool2d(above.exp(), grid)
    soft = _SMOOTHING * mean.clamp_min(torch.finfo(x.dtype).tiny).log()
    return largest.detach() + (soft - soft.detach())


def divide_by_norm(products: Tensor, vectors: Tensor, floor: float) -> Tensor:
    """Divide by the norms, at least `floor`, of vectors along the last axis."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    divided = products / norm.clamp_min(floor)
    if not _gradients_are_smooth():
        return divided
    # The direction of a vector near 0 turns with rounding: its gradient is damped.
    squares = vectors.square().sum(-1, keepdim=True)
    soft = products / (squares + _SMOOTHING**2).sqrt()
    return divided.detach() + (soft - soft.detach())


def max_over_positions(x: Tensor) -> Tensor:
    """Take the maximum (n, C) over the positions of a map (n, C, H, W)."""
    return max_pool(x, (1, 1)).flatten(1) if _gradients_are_smooth() else x.amax((2, 3))


class WeightedBatchNorm(nn.Module):
    """Normalise batches in which an integer row weight means repetition.

    Without row weights it is :func:`torch.nn.functional.batch_norm`. With them, the
    training statistics are those of a batch that holds row ``i`` ``w[i]`` times.

    Parameters
    ----------
    n_channels : int
        Size of axis 1 of the input.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Share of the newest batch in the running statistics; 1 keeps the last batch's.

    Attributes
    ----------
    row_weights : Tensor of shape (n,) or None
        Weights >= 0 of the rows of the coming batch. Ignored in eval mode.

    Notes
    -----
    With ``W = sum(w) * positions`` values a channel, ``mean = sum(w x) / W``,
    ``var = sum(w (x - mean)^2) / W``; the running variance takes ``var * W / (W - 1)``,
    as torch's does (our definition; the factor is capped at 2, its value at ``W = 2``,
    because fractional weights reach below). A batch with ``W <= 1`` carries no variance
    and leaves the running statistics alone, where torch raises.

    Examples
    --------
    >>> import torch
    >>> from sk_calex.branches._heads import WeightedBatchNorm
    >>> norm = WeightedBatchNorm(1, momentum=1.0)
    >>> norm.row_weights = torch.tensor([3.0, 1.0])
    >>> out = norm(torch.tensor([[0.0], [4.0]]))
    >>> norm.running_mean, norm.running_var  # as of the rows 0, 0, 0, 4
    (tensor([1.]), tensor([4.]))
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_channels: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.row_weights: Tensor | None = None
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))
        self.register_buffer("running_mean", torch.zeros(n_channels))
        self.register_buffer("running_var", torch.ones(n_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape (n, C, ...)."""
        weights = self.row_weights
        if self.training:
            if weights is not None:
                return self._weighted(x, weights.to(x))
            if x.numel() == x.shape[1]:  # one value a channel: torch would raise
                return self._weighted(x, x.new_ones(1))
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )

    def _weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        if weights.shape[0] != x.shape[0]:
            raise ValueError(
                f"row_weights hold {weights.shape[0]} rows but the batch holds "
                f"{x.shape[0]}; call set_row_weights with this batch's weights."
            )
        flat = x.reshape(x.shape[0], x.shape[1], -1)
        total = weights.sum() * flat.shape[2]
        share = weights / total.clamp_min(torch.finfo(x.dtype).tiny)
        mean = share @ flat.sum(2)
        centred = flat - mean[:, None]
        var = share @ centred.square().sum(2)
        with torch.no_grad():
            factor = total / torch.maximum(total - 1, total / 2)
            step = self.momentum * (total > 1).to(x.dtype)
            unbiased = torch.where(total > 1, var * factor, var)
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(unbiased, step)
        scale = self.weight * (var + self.eps).rsqrt()
        out = torch.addcmul(self.bias[:, None], centred, scale[:, None])
        return out.reshape(x.shape)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each channel that equal this layer in eval mode."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def integer(name: str, value: object, minimum: int = 1) -> int:
    """Check an integer parameter."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}.")
    return int(value)


def integers(
    name: str, values: object, shortest: int, longest: int | None = None
) -> list[int]:
    """Check a tuple or list of positive integers, of bounded length."""
    if (
        not isinstance(values, tuple | list)
        or len(values) < shortest
        or (longest is not None and len(values) > longest)
    ):
        count = (
            f"at least {shortest}" if longest is None else f"{shortest} to {longest}"
        )
        raise ValueError(
            f"{name} must be a tuple of {count} positive integers, got {values!r}."
        )
    return [integer(f"{name}[{i}]", value) for i, value in enumerate(values)]


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """Return the generator, or a fresh one: never torch's global one."""
    return torch.Generator().manual_seed(0) if generator is None else generator


class BranchHead(nn.Module):
    """Map features ``(n, *feature_shape)`` to logits ``(n, n_classes)``: base of heads.

    Parameters
    ----------
    feature_shape : tuple of int
        (C, H, W), (L, D) or (D,).
    n_classes : int
        Number of classes, at least 2.

    Notes
    -----
    A subclass writes ``_logits``, which receives the features as a map (n, C, H, W).

    Examples
    --------
    >>> from sk_calex.branches._heads import BranchHead, build_head
    >>> isinstance(build_head("gap", (8,), 3), BranchHead)
    True
    """

    #: Whether the logits are linear in features that nothing before them trains, so
    #: that a full-batch solver of second order ends at the same place every time.
    is_linear: ClassVar[bool] = False
    #: Highest rate of full-batch Adam, whose few steps must do: heads with few channels
    #: need larger ones, those with many learn the noise of a small set by them.
    full_batch_rate: ClassVar[float] = 5e-3

    def __init__(self, feature_shape: Sequence[int], n_classes: int) -> None:
        super().__init__()
        shape = integers("feature_shape", feature_shape, 1, 3)
        self.feature_shape: tuple[int, ...] = tuple(shape)
        self.n_classes = integer("n_classes", n_classes, 2)
        self.in_channels = shape[0] if len(shape) == 3 else shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the parameters, which the input must have."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (n, n_classes)."""
        return self._logits(self._as_map(x))

    def _logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _as_map(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.feature_shape:
            expected = ", ".join(["n", *map(str, self.feature_shape)])
            raise ValueError(
                f"the head takes features of shape ({expected}), got {tuple(x.shape)}; "
                "reshape them or build a head for that shape."
            )
        if x.dim() == 4:
            return x
        if x.dim() == 2:
            x = x.unsqueeze(1)
        # (n, L, 1, D) seen as (n, D, L, 1): channels-last, no copy.
        return x.unsqueeze(2).permute(0, 3, 1, 2)

    def set_row_weights(self, weights: Tensor | None) -> None:
        """Set the weights (n,) of rows in the next batches' statistics; None: all 1."""
        if weights is not None and weights.dim() != 1:
            raise ValueError(
                "weights must be one number for each row, of shape (n,), or None, got "
                f"shape {tuple(weights.shape)}."
            )
        for norm in self._norms():
            norm.row_weights = weights

    def set_momentum(self, momentum: float) -> None:
        """Set the share of the newest batch in the running statistics, in (0, 1]."""
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum!r}.")
        for norm in self._norms():
            norm.momentum = momentum

    def _norms(self) -> list[WeightedBatchNorm]:
        return [m for m in self.modules() if isinstance(m, WeightedBatchNorm)]

    def init_from_data(
        self,
        x: Tensor,
        y: Tensor,
        sample_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Initialise from data what can be; heads without prototypes do nothing."""

    def extra_repr(self) -> str:
        """Return the shapes, for ``print(head)``."""
        return f"feature_shape={self.feature_shape}, n_classes={self.n_classes}"


class Pointwise(nn.Linear):
    """Apply a linear map at every position: a 1x1 convolution, faster on tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Apply a bias-free linear layer, batch normalisation and ReLU."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer: nn.Module = layer
        self.norm: WeightedBatchNorm | None = WeightedBatchNorm(layer.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.norm is not None:
            x = self.norm(x)
        return relu(x)

    def fold_(self) -> None:
        """Move the normalisation into the layer; eval mode only from here on."""
        if self.norm is None:
            return
        scale, shift = self.norm.affine()
        weight = cast(Tensor, self.layer.weight)
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        self.layer.weight = nn.Parameter(weight)
        self.layer.bias = nn.Parameter(shift)
        self.norm = None


def draw(layer: _Layer, generator: torch.Generator) -> _Layer:
    """Fill a layer from ``generator``: He for what a ReLU follows, else as torch."""
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    if bias is None:
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    else:
        bound = 1 / math.sqrt(weight.shape[1])
        nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.zeros_(bias)
    return layer


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    return draw(skip_init(nn.Linear, n_in, n_out), generator)


def pointwise(n_in: int, n_out: int, generator: torch.Generator) -> Block:
    return Block(draw(skip_init(Pointwise, n_in, n_out, bias=False), generator))


def trunk(
    shape: tuple[int, ...], widths: Sequence[int], generator: torch.Generator
) -> nn.Sequential:
    """Build blocks of the given widths: 3x3 convolutions on maps, linear on tokens."""
    blocks = nn.Sequential()
    n_in = shape[0] if len(shape) == 3 else shape[-1]
    for i, width in enumerate(widths):
        if len(shape) == 3:
            stride = 2 if i == 0 and min(shape[1:]) > 4 else 1
            conv = skip_init(
                nn.Conv2d, n_in, width, 3, stride=stride, padding=1, bias=False
            )
            blocks.append(Block(draw(conv, generator)))
        else:
            blocks.append(pointwise(n_in, width, generator))
        n_in = width
    return blocks


def pooled_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the grid of the mixed pooling: up to 4 x 4 of a map, 16 of tokens."""
    *_, height, width = (1, *shape)
    if len(shape) == 3:
        return min(height, 4), min(width, 4)
    return min(height, 16), 1


def mixed_pool(x: Tensor, grid: tuple[int, int], alpha: Tensor) -> Tensor:
    """Pool ``alpha max + (1 - alpha) mean`` over the cells of a grid; flatten."""
    # On CPUs the copy takes a tenth of the time that pooling the other layout would.
    x = x.contiguous(memory_format=torch.channels_last)
    mean = F.adaptive_avg_pool2d(x, grid)
    return mean.lerp(max_pool(x, grid), alpha).flatten(1)
