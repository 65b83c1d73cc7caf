"""Warnings that name the caller's line, however deep they arise."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_caller"]

# Libraries through which this package calls itself, or is called by a search.
_BETWEEN = ("sklearn", "joblib", "torch", "contextlib")


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn as of the first frame outside of this package and those that call it.

    Parameters
    ----------
    message : str
        What to say.
    category : type of Warning
        Its class.
    """
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_globals, package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(names: dict[str, object], package: str) -> bool:
    # A fit is entered through wrappers of these libraries, and folds by joblib, too.
    module = str(names.get("__name__", ""))
    return module.partition(".")[0] in (package, *_BETWEEN)
