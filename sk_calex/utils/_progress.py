"""Show progress bars on stderr; silent unless `verbose` is set.

Bars are plain text, which terminals, logs and notebooks show alike. Those of
``tqdm.auto`` warn in a notebook without ipywidgets, and vanish when it is exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "labelled", "showing"]

# Set by an estimator for the parts that it fits: their label, and whether bars are
# shown even if a part's own `verbose` is 0. A context variable, so that no parameter
# and no cache of fitted parts depends on it. Worker threads and processes do not see
# it: their bars would run over each other.
_SHOWN: ContextVar[tuple[str, bool]] = ContextVar("shown", default=("", False))


@contextmanager
def showing(verbose: Any, label: str) -> Iterator[None]:
    """Label the bars inside the block, and show them if `verbose` is not 0."""
    token = _SHOWN.set((label, bool(verbose)))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def labelled(label: str) -> AbstractContextManager[None]:
    """Change the label of the bars inside the block, and nothing else."""
    return showing(_SHOWN.get()[1], label)


def bar(*, unit: str, total: int | None, verbose: Any = 0) -> tqdm[Any]:
    """Make a progress bar, for a ``with`` block.

    Parameters
    ----------
    unit : str
        Name of one of the things counted, in the singular.
    total : int or None
        How many there will be; None if unknown.
    verbose : int or bool, default=0
        Show the bar if not 0. A surrounding `showing` block shows it, too.

    Returns
    -------
    bar : tqdm
        The bar; updating one that is not shown does nothing.
    """
    label, shown = _SHOWN.get()
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=label or None,
        disable=not (shown or verbose),
    )
