"""The grid to which the feature maps of each tap are averaged."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

__all__ = ["DEFAULT_POOL", "Grid", "pool_grids"]

DEFAULT_POOL = 8

Grid = tuple[int, int] | None
"""Height and width to average to; None where a tap stays as it is."""


def pool_grids(
    pool: Any, taps: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[Grid, ...]:
    """Grid of each tap: what `pool` asks for, but never larger than the map.

    Parameters
    ----------
    pool : int, (height, width), None, or a mapping of those by tap
        As given by the user. Taps that a mapping leaves out get `DEFAULT_POOL`.
    taps : sequence of str
        Names of the taps.
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap. Only maps (C, H, W) are pooled.

    Returns
    -------
    grids : tuple of (int, int) or None
        One a tap.

    Raises
    ------
    ValueError
        If `pool` has another form or names something that is not a tap.
    """
    by_tap = pool if isinstance(pool, Mapping) else dict.fromkeys(taps, pool)
    if unknown := set(by_tap) - set(taps):
        raise ValueError(
            f"pool names {sorted(map(str, unknown))}, which are not among the taps "
            f"{list(taps)}."
        )
    grids: list[Grid] = []
    for tap, shape in zip(taps, shapes, strict=True):
        limits = _limits(by_tap.get(tap, DEFAULT_POOL), tap)
        if limits is None or len(shape) != 3:
            grids.append(None)
        else:
            grid = (min(limits[0], shape[1]), min(limits[1], shape[2]))
            grids.append(None if grid == shape[1:] else grid)
    return tuple(grids)


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
