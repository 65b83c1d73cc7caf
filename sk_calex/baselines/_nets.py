"""The network that most baselines share: a head a tap, cross-entropy on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sk_calex.baselines._exit_net import ExitNet
from sk_calex.branches._heads import build_head

__all__ = ["LabelNet"]


class LabelNet(ExitNet):
    """Heads of one kind on all taps, trained on the labels.

    The loss is ``sum_k v_k mean w CE(z_k, y)``.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap.
    n_classes : int
        Number of classes.
    head : str
        Name of the head, of `sk_calex.branches._heads.HEADS`.
    head_params : dict or None
        Its parameters.
    generator : torch.Generator
        Source of the initial parameters.
    branch_weights : sequence of float, default=None
        Weights v of the branches' losses; None: all 1.
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_classes: int,
        head: str,
        head_params: dict[str, Any] | None,
        generator: torch.Generator,
        branch_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(shapes, n_classes)
        weights = [1.0] * len(shapes) if branch_weights is None else branch_weights
        self.branch_weights = tuple(weights)
        params = head_params or {}
        self.heads = nn.ModuleList(
            build_head(head, shape, n_classes, generator=generator, **params)
            for shape in shapes
        )

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """``sum_k v_k mean w CE(z_k, y)``; see `ExitNet.loss`."""
        losses = [
            v * F.cross_entropy(z, labels, reduction="none")
            for v, z in zip(self.branch_weights, outputs, strict=False)
        ]
        return (weight * torch.stack(losses).sum(dim=0)).mean()
