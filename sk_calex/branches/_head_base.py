"""What every branch head has: shapes, row weights, momentum."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from ._layers import WeightedBatchNorm

__all__ = ["BranchHead"]


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
    """Base of the heads: ``(n, *feature_shape)`` in, ``(n, n_classes)`` logits out.

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

    def __init__(self, feature_shape: Sequence[int], n_classes: int) -> None:
        super().__init__()
        shape = integers("feature_shape", feature_shape, 1, 3)
        self.feature_shape: tuple[int, ...] = tuple(shape)
        self.n_classes = integer("n_classes", n_classes, 2)
        self.in_channels = shape[0] if len(shape) == 3 else shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters, which the input must have."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (n, n_classes)."""
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
        """Weights (n,) of the coming batches' rows in the statistics; None: all 1."""
        if weights is not None and weights.dim() != 1:
            raise ValueError(
                "weights must be one number a row, of shape (n,), or None, got shape "
                f"{tuple(weights.shape)}."
            )
        for norm in self._norms():
            norm.row_weights = weights

    def set_momentum(self, momentum: float) -> None:
        """Share of the newest batch in the running statistics, in (0, 1]."""
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
        """Start from data what can; heads without prototypes have nothing to do."""

    def extra_repr(self) -> str:
        """Shapes, for ``print(head)``."""
        return f"feature_shape={self.feature_shape}, n_classes={self.n_classes}"
