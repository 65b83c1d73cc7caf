"""Report the steps of a fit to scikit-learn's callbacks (scikit-learn 1.9 or later)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

try:
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _with_callbacks
except ImportError:  # scikit-learn before 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand in for scikit-learn's class, without methods."""

    def _with_callbacks(method: Any) -> Any:
        return method


__all__ = [
    "NO_TASK",
    "CallbackSupportMixin",
    "Task",
    "current_task",
    "use_task",
    "with_callbacks",
]

Method = TypeVar("Method", bound=Callable[..., Any])


def with_callbacks(method: Method) -> Method:
    """Decorate a `fit` so that its callbacks are torn down when it returns or fails."""
    decorated: Method = _with_callbacks(method)
    return decorated


class Task:
    """A step of a fit, reported to the callbacks at both ends of a ``with`` block.

    Parameters
    ----------
    owner : estimator
        The estimator that is fitted.
    context : sklearn.callback.CallbackContext or None
        The step in scikit-learn's tree of tasks; None without callbacks.
    data : dict
        `X`, `y` and `metadata` of the fit.
    fitted : callable or None
        Returns the attributes with which a copy of the owner is fitted up to this
        step.

    Attributes
    ----------
    stop : bool
        Whether a callback requested, at the end, to skip further steps of this kind.
    """

    def __init__(
        self,
        owner: Any = None,
        context: Any = None,
        data: dict[str, Any] | None = None,
        fitted: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._owner, self._context = owner, context
        self._data, self._fitted = data or {}, fitted
        self.stop = False

    @classmethod
    def root(
        cls, owner: Any, n_parts: int, X: Any, y: Any, sample_weight: Any = None
    ) -> Task:
        """Start the fit of an estimator, whose parts run one after the other."""
        start = getattr(owner, "_init_callback_context", None)
        if start is None:
            return cls()
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        data = {"X": X, "y": y, "metadata": weights}
        return cls(owner, start(max_subtasks=n_parts), data, dict)

    def part(
        self,
        name: str,
        n_parts: int = 0,
        fitted: Callable[[], dict[str, Any]] | None = None,
    ) -> Task:
        """Return a step of this step, which may have `n_parts` of its own."""
        if self._context is None:
            return self
        context = self._context.subcontext(task_name=name, max_subtasks=n_parts)
        return Task(self._owner, context, self._data, fitted)

    def owned_by(self, estimator: Any) -> AbstractContextManager[Any]:
        """Return a context in which this step is the fit of another estimator."""
        if self._context is None:
            return nullcontext()
        within: AbstractContextManager[Any] = self._context.propagate_callback_context(
            estimator
        )
        return within

    def __enter__(self) -> Self:
        if self._context is not None:
            self._context.call_on_fit_task_begin(estimator=self._owner, **self._data)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._context is not None and kind is None:
            self.stop = self._context.call_on_fit_task_end(
                estimator=self._owner,
                **self._data,
                reconstruction_attributes=self._fitted,
            )


#: A step that is reported to no callback.
NO_TASK = Task()

# A context variable, so that no cache of fitted parts depends on the callbacks. Worker
# threads and processes do not see it: steps in there are not reported.
_CURRENT: ContextVar[Task] = ContextVar("current_task", default=NO_TASK)


@contextmanager
def use_task(task: Task) -> Iterator[None]:
    """Set the step that `current_task` returns inside the block."""
    token = _CURRENT.set(task)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_task() -> Task:
    """Return the step that `use_task` set, or `NO_TASK`."""
    return _CURRENT.get()
