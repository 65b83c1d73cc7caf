"""Bars of what is under way: on stderr, silent unless asked for.

Plain text bars, which terminals, logs and notebooks show alike. Those of ``tqdm.auto``
warn in a notebook that has no ipywidgets, and leave nothing in one that is exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "labelled", "showing"]

# What an estimator says of the parts that it fits: their label, and whether they are
# shown even where they are silent themselves. A context variable, so that no parameter
# and no cache of fitted parts depends on it. Worker threads and processes do not see
# it: their bars would run over each other.
_SHOWN: ContextVar[tuple[str, bool]] = ContextVar("shown", default=("", False))


@contextmanager
def showing(verbose: Any, label: str) -> Iterator[None]:
    """Label the bars inside, and show them where `verbose` is not 0."""
    token = _SHOWN.set((label, bool(verbose)))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def labelled(label: str) -> AbstractContextManager[None]:
    """Another label for the bars inside; shown or not as those outside."""
    return showing(_SHOWN.get()[1], label)


def bar(*, unit: str, total: int | None, verbose: Any = 0) -> tqdm[Any]:
    """A bar, for ``with``; shown if `verbose` says so, or who is around it.

    Parameters
    ----------
    unit : str
        What is counted.
    total : int or None
        How many there will be; None where that is not known.
    verbose : int or bool, default=0
        Of who counts.

    Returns
    -------
    bar : tqdm
        Does nothing where it is not shown.
    """
    label, shown = _SHOWN.get()
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=label or None,
        disable=not (shown or verbose),
    )
