"""Prepared batches: what is kept of the one seen in fit, and what is said of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sk_calex.backbone._stages import Batch

__all__ = [
    "check_kind",
    "described",
    "drawn",
    "how_to_turn",
    "spare",
]


def how_to_turn(batch: Batch) -> str:
    """Say how images with channels last are given, where these look like such."""
    if not isinstance(batch, Tensor) or batch.ndim != 4:
        return ""
    colours = (1, 3, 4)
    if batch.shape[-1] not in colours or batch.shape[1] in colours:
        return ""
    return (
        " These look like images with channels last: give X.transpose(0, 3, 1, 2), or "
        "the Dataset a transform that makes tensors of them, such as ToTensor()."
    )


def described(batch: Batch) -> str:
    """Write out the shape and dtype of a batch, for a message."""
    if isinstance(batch, Tensor):
        return f"a batch of shape {tuple(batch.shape)} and dtype {batch.dtype}"
    inputs = (f"{k}={described(tensor)}" for k, tensor in batch.items())
    return f"the keywords {', '.join(inputs)}"


def spare(example: Batch) -> Any:
    """Reduce an example: integers, which are ids, stay; of floats, the shape."""
    if isinstance(example, Tensor):
        is_float = example.is_floating_point()
        return tuple(example.shape[1:]) if is_float else example.detach().cpu()
    return {name: spare(tensor) for name, tensor in example.items()}


def check_kind(batch: Any, kept: Any, name: str) -> None:
    """Refuse integers where the example had floats, and the other way round."""
    if isinstance(batch, Mapping) != isinstance(kept, dict) or (
        isinstance(batch, Mapping) and set(batch) != set(kept)
    ):
        names = sorted(batch) if isinstance(batch, Mapping) else "one tensor"
        fitted = sorted(kept) if isinstance(kept, dict) else "one tensor"
        raise ValueError(
            f"preprocess has returned {names}, but in fit it was {fitted}. It must "
            "return the same inputs for all samples."
        )
    if isinstance(batch, Mapping):
        for key in batch:
            check_kind(batch[key], kept[key], f"{name}[{key!r}]")
        return
    if batch.is_floating_point() == isinstance(kept, Tensor):
        fitted = "integers" if isinstance(kept, Tensor) else "floats"
        raise ValueError(
            f"{name} is of dtype {batch.dtype}, but the backbone was fitted with "
            f"{fitted} (after preprocessing). Give samples of that kind, or fit again."
        )


def drawn(kept: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Make an example from what `spare` left of one."""
    if isinstance(kept, dict):
        return {name: drawn(value, device, dtype) for name, value in kept.items()}
    if isinstance(kept, Tensor):
        return kept.to(device)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *kept, generator=generator).to(device, dtype)
