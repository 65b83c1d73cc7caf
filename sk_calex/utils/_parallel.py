"""Results of joblib's workers that can always be received."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
from joblib.parallel import BACKENDS, get_active_backend

__all__ = ["for_workers", "received"]

_OF_JOBLIB = ("loky", "multiprocessing", "sequential", "threading")


@dataclass(frozen=True)
class _Sealed:
    """The pickle of a result: bytes, which nothing can fail to load."""

    content: bytes


@dataclass(frozen=True)
class _Sealing:
    """A function whose result is pickled where it runs."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> _Sealed:
        return _Sealed(cloudpickle.dumps(self.function(*args, **kwargs)))


def for_workers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Prepare a function for `joblib.delayed`, for the backend that is active now.

    Parameters
    ----------
    function : callable
        What workers run. Give its results to `received`.

    Returns
    -------
    callable
        The function itself for joblib's own backends. For others, one that returns
        bytes: Dask waits for ever for a result that cannot be loaded, because it loads
        it in a thread whose errors are lost.
    """
    backend = type(get_active_backend()[0])
    ours = tuple(BACKENDS[name] for name in _OF_JOBLIB if name in BACKENDS)
    if issubclass(backend, ours):
        return function
    return _Sealing(function)


def received(result: Any) -> Any:
    """Return what a worker's function returned.

    Parameters
    ----------
    result : object
        A result of a function made by `for_workers`.

    Returns
    -------
    object
        The result of the function.

    Raises
    ------
    RuntimeError
        If the result cannot be loaded on this machine.
    """
    if not isinstance(result, _Sealed):
        return result
    try:
        return cloudpickle.loads(result.content)
    except Exception as error:
        raise RuntimeError(
            "the result of a worker cannot be loaded here "
            f"({type(error).__name__}: {error}). Install the same versions of Python, "
            "torch and scikit-learn, and the same code of your own, on all machines."
        ) from error
