"""What a fit depends on, told apart by content, so that clones can share it."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._runner import state_of
from sk_calex.cascade._content import array_digest, input_digest, labels_digest
from sk_calex.cascade._fit_cache import FitRequest

__all__ = ["fit_request", "stamp_of"]

#: Parameters that change how fast something is computed, not what.
HOUSEKEEPING = frozenset({"n_jobs", "verbose", "memory"})

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_NAMED = (torch.device, torch.dtype, np.dtype, range, slice)
_BY_IDENTITY = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    nn.Module,
)


class _CannotTellError(Exception):
    """A value whose content cannot be told, or that changes with use."""


def fit_request(
    cascade: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    split_args: Mapping[str, Any],
    *,
    moving: frozenset[str],
    unused: frozenset[str],
) -> FitRequest | None:
    """Ask for a fit of an unfitted cascade; None where it cannot be shared.

    `moving` are parameters that only move the trained cascade, `unused` those that do
    nothing under the others. Random generators given as such are used up by each fit,
    so those fits are never shared.
    """
    content = [input_digest(X), labels_digest(y)]
    if sample_weight is not None:
        content.append(labels_digest(sample_weight))
    for name, value in sorted(split_args.items()):
        digest = labels_digest(value)
        content.append(None if digest is None else f"{name} {digest}")
    if None in content:
        return None
    params = {
        name: value
        for name, value in vars(cascade).items()
        if not name.startswith("_") and not name.endswith("_")
    }
    trained, moved = _Description(), _Description()
    ignored = moving | unused | HOUSEKEEPING
    try:
        key = [
            (name, trained.of(value, seeded=name == "branch"))
            for name, value in sorted(params.items())
            if name not in ignored and name != "random_state"
        ]
        seed = trained.seed(cascade.random_state)
        point = [
            (name, moved.of(params[name])) for name in sorted(moving & set(params))
        ]
    except _CannotTellError:
        return None
    return FitRequest(
        (type(cascade), tuple(content), sample_weight is None, seed, tuple(key)),
        tuple(point),
        not trained.draws,
        tuple(trained.keeps),
    )


class _Description:
    """Turns parameters into tuples that are equal where their content is.

    `draws` says whether something met on the way draws from numpy's global generator;
    `keeps` are objects met that are known by their identity.
    """

    def __init__(self) -> None:
        self.draws = False
        self.keeps: list[Any] = []

    def seed(self, random_state: Any) -> Any:
        """A random state: a number, or none."""
        if random_state is None:
            self.draws = True
        elif not isinstance(random_state, int | np.integer):
            raise _CannotTellError
        return random_state

    def of(self, value: Any, *, seeded: bool = False, depth: int = 0) -> Any:
        """Describe a value; a `seeded` estimator gets its seed from the cascade."""
        if depth > 12:
            raise _CannotTellError  # a cycle, or nearly
        inner = functools.partial(self.of, depth=depth + 1)
        if isinstance(value, _PLAIN):
            # By repr, for NaN is not equal to itself, but 1 is to True.
            return type(value), repr(value)
        if isinstance(value, _NAMED):
            return str(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return "array", array_digest(value)
        if isinstance(value, Tensor):
            return (
                "tensor",
                str(value.dtype),
                inner(value.detach().cpu().double().numpy()),
            )
        if isinstance(value, list | tuple):
            parts = (self.of(v, seeded=seeded, depth=depth + 1) for v in value)
            return type(value), tuple(parts)
        if isinstance(value, dict):
            return "dict", tuple((inner(k), inner(v)) for k, v in value.items())
        if isinstance(value, FrozenBackbone):
            return self._backbone(value, depth)
        inside = value.estimator if isinstance(value, FrozenEstimator) else None
        if isinstance(inside, FrozenBackbone):
            return "frozen", self._backbone(inside, depth)
        if isinstance(value, _BY_IDENTITY):
            self.keeps.append(value)
            modules = list(value.modules()) if isinstance(value, nn.Module) else []
            return "object", id(value), tuple(state_of(modules))
        if isinstance(value, functools.partial):
            return "partial", inner([value.func, value.args, value.keywords])
        if isinstance(value, BaseEstimator):
            if type(value).__sklearn_clone__ is not BaseEstimator.__sklearn_clone__:
                raise _CannotTellError  # a frozen one is more than its parameters
            return self._parts(value, value.get_params(deep=False), seeded, depth)
        # Splitters and the like; of other classes it is not known what they hold.
        if type(value).__module__.startswith(("sklearn.", "sk_calex.")):
            own = {k: v for k, v in vars(value).items() if k != "_metadata_request"}
            shuffles = getattr(value, "shuffle", True) is not False
            return self._parts(value, own, not shuffles, depth)
        raise _CannotTellError

    def _parts(
        self, value: Any, parts: Mapping[str, Any], seeded: bool, depth: int
    ) -> Any:
        described = []
        for name, part in parts.items():
            if name == "random_state" and not (seeded and part is None):
                described.append((name, self.seed(part)))
            elif name not in HOUSEKEEPING:
                described.append((name, self.of(part, seeded=seeded, depth=depth + 1)))
        return type(value), tuple(described)

    def _backbone(self, backbone: FrozenBackbone, depth: int) -> Any:
        params = backbone.get_params(deep=False)
        module, cache = params.pop("module"), params.pop("cache")
        self.keeps += [module, cache]
        written = state_of(list(module.modules()))
        layout = getattr(backbone, "layout_", None)  # fitted, where X holds features
        return (
            self._parts(backbone, params, False, depth),
            id(module),
            tuple(written),
            cache if isinstance(cache, str) else id(cache),
            layout,
        )


def stamp_of(cascade: Any) -> tuple[Any, ...]:
    """What a fitted cascade answers with, and how often it was written to."""
    parts = [*cascade.branches_, cascade.final_estimator_, cascade.backbone_]
    parts.append(getattr(cascade, "net_", None))
    modules: list[nn.Module] = []
    for part in parts:
        for held in (part, getattr(part, "head_", None), getattr(part, "module", None)):
            if isinstance(held, nn.Module):
                modules += held.modules()
    return tuple(map(id, parts)), tuple(state_of(modules))
