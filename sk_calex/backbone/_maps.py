"""Bring what a tap gives into the form that heads take: channels first, pooled."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sk_calex.utils._codec import savable
from sk_calex.utils._warn import warn_caller

__all__ = ["DEFAULT_POOL", "LAYOUTS", "TapMap", "tap_maps"]

DEFAULT_POOL = 8

LAYOUTS = ("NCHW", "NHWC", "NCL", "NLC")
"""Orders of axes: N samples, C channels, H by W pixels, L tokens."""

Grid = tuple[int, int] | None
"""Height and width to which maps are averaged; None where a tap stays as it is."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@savable
@dataclass(frozen=True)
class TapMap:
    """What is done with the output of one tap.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample after it: (C, H, W), (L, D) tokens or (D,).
    moved : bool
        Whether the last axis moves to the front (maps), or the first to the end
        (sequences of shape (C, L)).
    averaged : bool
        Whether frames of a video, or slices of a volume, are averaged.
    grid : tuple of int or None
        To which height and width maps are averaged.
    """

    shape: tuple[int, ...]
    moved: bool = False
    averaged: bool = False
    grid: Grid = None

    def __call__(self, output: Tensor) -> Tensor:
        """Apply it to a batch."""
        if self.moved:
            output = output.movedim(*((1, -1) if output.ndim == 3 else (-1, 1)))
        if self.averaged:
            output = output.mean(2)
        if self.grid is not None:
            output = F.adaptive_avg_pool2d(output, self.grid)
        return output

    def key(self) -> tuple[Any, ...]:
        """Return what counts in the fingerprint of features."""
        return self.moved, self.averaged, self.grid


def tap_maps(
    module: nn.Module,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    *,
    pool: Any,
    layout: Any,
) -> tuple[TapMap, ...]:
    """Decide what is done with each tap.

    Parameters
    ----------
    module : torch.nn.Module
        The backbone, from whose layers the axis of channels is known.
    names : sequence of str
        Names of the taps.
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap.
    pool : int, (height, width), None, or a mapping of those by tap
        As given by the user. Taps that a mapping leaves out get `DEFAULT_POOL`.
    layout : str, None, or a mapping of those by tap
        As given by the user. None: found.

    Returns
    -------
    maps : tuple of TapMap
        One per tap.

    Raises
    ------
    ValueError
        If `pool` or `layout` has another form, does not fit a tap or names something
        that is not a tap; if a tap has more than four axes.

    Warns
    -----
    UserWarning
        Where it is not known which axis holds the channels.
    """
    pools = _by_tap("pool", pool, names, DEFAULT_POOL)
    layouts = _by_tap("layout", layout, names, None)
    maps = []
    for name, shape in zip(names, shapes, strict=True):
        limits = _limits(pools[name], name)
        given = layouts[name]
        if given is not None and given not in LAYOUTS:
            raise ValueError(
                f"layout={given!r} for tap {name!r} is not usable: give one of "
                f"{', '.join(map(repr, LAYOUTS))}, a dict of those by tap, or None."
            )
        if len(shape) > 4:
            raise ValueError(
                f"tap {name!r} has features of shape {shape} for one sample; branches "
                "take (D,), (L, D), (C, H, W) and (C, T, H, W). Tap another module."
            )
        fits = given is None or (len(given) == 3) == (len(shape) == 2)
        if isinstance(layout, Mapping) and not (fits and len(shape) > 1):
            raise ValueError(
                f"layout={given!r} does not fit tap {name!r}, whose features are of "
                f"shape {shape} for one sample."
            )
        if given is None or not fits or len(shape) == 1:
            given = _find_layout(module, name, shape)
        maps.append(_tap_map(shape, given, limits))
    if isinstance(layout, str) and all(
        (len(layout) == 3) != (len(shape) == 2) or len(shape) == 1 for shape in shapes
    ):
        raise ValueError(
            f"layout={layout!r} fits no tap; their features are of shapes "
            f"{dict(zip(names, shapes, strict=True))}. Leave it None."
        )
    return tuple(maps)


def _by_tap(what: str, given: Any, taps: Sequence[str], default: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(taps, given)
    if unknown := set(given) - set(taps):
        raise ValueError(
            f"{what} names {sorted(map(str, unknown))}, which are not among the taps "
            f"{list(taps)}."
        )
    return {tap: given.get(tap, default) for tap in taps}


def _limits(pool: Any, tap: str) -> Grid:
    if pool is None:
        return None
    try:
        height, width = (pool, pool) if isinstance(pool, Integral) else pool
        limits = (operator.index(height), operator.index(width))
    except (TypeError, ValueError):
        limits = (0, 0)
    if min(limits) < 1:
        raise ValueError(
            f"pool={pool!r} for tap {tap!r} is not usable: give a positive integer, "
            "(height, width), a dict of those by tap, or None."
        )
    return limits


def _tap_map(shape: tuple[int, ...], layout: str | None, limits: Grid) -> TapMap:
    moved = layout in ("NHWC", "NCL")
    if moved:
        shape = (*shape[1:], shape[0]) if layout == "NCL" else (shape[-1], *shape[:-1])
    averaged = len(shape) == 4
    if averaged:
        shape = (shape[0], *shape[2:])
    grid = None
    if limits is not None and len(shape) == 3:
        grid = (min(limits[0], shape[1]), min(limits[1], shape[2]))
        if grid == shape[1:]:
            grid = None
        shape = (shape[0], *(grid or shape[1:]))
    return TapMap(shape, moved, averaged, grid)


def _find_layout(module: nn.Module, tap: str, shape: tuple[int, ...]) -> str | None:
    """Find the order of a tap's axes from the module and the shape."""
    if len(shape) == 1:
        return None
    if len(shape) == 2:
        return "NCL" if _axis_of_channels(module, tap, shape) == 0 else "NLC"
    axis = None
    for part in _parts_around(module, tap):
        # timm's models and layers say so; 2-D features of theirs are tokens.
        said = getattr(part, "output_fmt", None)
        said = str(getattr(said, "value", said))
        if said in ("NCHW", "NHWC"):
            axis = 0 if said == "NCHW" else -1
            break
    square = _axis_beside_a_square(shape)
    learned = _axis_of_channels(module, tap, shape)
    if axis is not None and (square is None or square == axis or learned == axis):
        return "NCHW" if axis == 0 else "NHWC"
    axis = square if learned is None else learned
    if axis is None:
        warn_caller(
            f"tap {tap!r} gives features of shape {shape} for one sample, and whether "
            "the first or the last axis holds the channels is not known. The first is "
            "taken. Say it: FrozenBackbone(..., layout='NCHW') or layout='NHWC'.",
            UserWarning,
        )
    return "NHWC" if axis == -1 else "NCHW"


def _parts_around(module: nn.Module, tap: str) -> Iterator[nn.Module]:
    """Find the tapped module and those around it, from the inside out."""
    path = tap.split(".") if tap else []
    while True:
        with suppress(AttributeError):  # of the name of an operation
            yield module.get_submodule(".".join(path))
        if not path:
            return
        path.pop()


def _axis_beside_a_square(shape: tuple[int, ...]) -> int | None:
    """Find the axis of channels where the two others, height and width, are equal."""
    if len(shape) != 3 or (shape[0] == shape[1]) == (shape[1] == shape[2]):
        return None
    return -1 if shape[0] == shape[1] else 0


def _axis_of_channels(
    module: nn.Module, tap: str, shape: tuple[int, ...]
) -> int | None:
    """Find the axis that is as long as the layers in and around the tap are wide.

    Convolutions and their norms have channels first, linear layers and layer norms
    last. The innermost module whose layers speak for one of the two decides.
    """
    for part in _parts_around(module, tap):
        first, last = set(), set()
        for layer in part.modules():
            if isinstance(layer, _CONVOLUTIONS):
                first.add(layer.out_channels)
            elif isinstance(layer, _CHANNEL_NORMS):
                first.add(
                    getattr(layer, "num_features", getattr(layer, "num_channels", 0))
                )
            elif isinstance(layer, nn.Linear):
                last.add(layer.out_features)
            elif isinstance(layer, nn.LayerNorm):
                last.add(layer.normalized_shape[-1])
        is_first, is_last = shape[0] in first, shape[-1] in last
        if is_first != is_last:
            return 0 if is_first else -1
    return None
