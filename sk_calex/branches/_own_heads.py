"""Heads that a user makes: any torch module from a tap's features to class logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sk_calex.branches._layers import BranchHead

__all__ = ["OwnHead", "build_own_head", "check_factory", "drawing_from"]

HeadFactory = Callable[..., nn.Module]
"""``factory(feature_shape, n_classes, **head_params)`` to a module, untrained."""


class OwnHead(BranchHead):
    """A user's module in the place of a head.

    Parameters
    ----------
    module : torch.nn.Module
        From features, n rows of `feature_shape`, to logits (n, n_classes).
    feature_shape, n_classes
        As of `BranchHead`.
    """

    #: A module of unknown size: as of the built-in heads with few channels, for few
    #: steps at a low rate leave a small one where its draws put it.
    full_batch_rate: ClassVar[float] = 2e-2

    def __init__(
        self, module: nn.Module, feature_shape: Sequence[int], n_classes: int
    ) -> None:
        super().__init__(feature_shape, n_classes)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (n, n_classes), of features as they are."""
        logits: Tensor = self.module(x)
        return logits

    def set_momentum(self, momentum: float) -> None:
        """Set the share of the newest batch, in normalisations of torch, too."""
        super().set_momentum(momentum)
        for layer in self.modules():
            if isinstance(layer, _BatchNorm) and layer.momentum is not None:
                layer.momentum = momentum


def check_factory(head: Any) -> None:
    """Refuse a module: each fit needs a new one, with new parameters."""
    if isinstance(head, nn.Module):
        raise TypeError(
            f"head is a module, a {type(head).__name__}, but each fit needs an "
            "untrained one of its own. Give what makes it: a function of "
            "(feature_shape, n_classes) that returns the module, or its class."
        )


def build_own_head(
    factory: HeadFactory,
    feature_shape: tuple[int, ...],
    n_classes: int,
    generator: torch.Generator,
    params: dict[str, Any],
) -> OwnHead:
    """Make and check a user's module.

    Parameters
    ----------
    factory : callable
        Makes the module of (feature_shape, n_classes, **params). Where it has a
        parameter named `generator`, it gets that, too.
    feature_shape : tuple of int
        Shape of one sample's features.
    n_classes : int
        Number of classes.
    generator : torch.Generator
        Source of the initial parameters; torch's global generator is seeded from it
        meanwhile, and is then what it was.
    params : dict
        More arguments of the factory.

    Returns
    -------
    head : OwnHead
        In train mode, on the CPU.

    Raises
    ------
    TypeError
        If the factory does not return a module, or the module no tensor.
    ValueError
        If the module has nothing to train, or its outputs have another shape.
    """
    if _takes_generator(factory):
        params = {**params, "generator": generator}
    with drawing_from(generator):
        module = factory(feature_shape, n_classes, **params)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"head={factory!r} returned a {type(module).__name__} for the features of "
            f"shape {feature_shape}. Return a torch.nn.Module."
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"head={factory!r} made a {type(module).__name__} without parameters to "
            "train. Give it at least a linear layer."
        )
    head = OwnHead(module.float().cpu(), feature_shape, n_classes)
    _check_outputs(head.eval(), factory)
    return head.train()


@torch.no_grad()
def _check_outputs(head: OwnHead, factory: HeadFactory) -> None:
    """Run two rows of zeros: a wrong shape would end the training, or worse, not."""
    logits = head(torch.zeros(2, *head.feature_shape))
    expected = (2, head.n_classes)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the module of head={factory!r} returned a {type(logits).__name__}. "
            "Return the logits alone, as a tensor of shape (n, n_classes)."
        )
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"the module of head={factory!r} returned the shape {tuple(logits.shape)} "
            f"for features of shape {(2, *head.feature_shape)}, expected {expected}: "
            "one row of logits for each sample, one column for each class."
        )


def _takes_generator(factory: HeadFactory) -> bool:
    try:
        return "generator" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of builtins there is none
        return False


@contextmanager
def drawing_from(
    generator: torch.Generator, device: torch.device | None = None
) -> Iterator[None]:
    """Let what draws from torch's global generators draw from a seed of another.

    Those of the CPU and of `device`, which are afterwards what they were; no other is
    touched.
    """
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
