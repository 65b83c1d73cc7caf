"""Steps of a fit that scikit-learn's callbacks hear of, from its version 1.9 on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

try:
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _with_callbacks
except ImportError:  # before scikit-learn 1.9: nobody listens

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Adds nothing."""

    def _with_callbacks(method: Any) -> Any:
        return method


__all__ = [
    "NO_TASK",
    "CallbackSupportMixin",
    "Task",
    "handed",
    "handing",
    "with_callbacks",
]

Method = TypeVar("Method", bound=Callable[..., Any])


def with_callbacks(method: Method) -> Method:
    """Decorate a `fit`: its callbacks are torn down however it ends."""
    decorated: Method = _with_callbacks(method)
    return decorated


class Task:
    """A step of a fit; ``with`` tells the callbacks when it begins and ends.

    Parameters
    ----------
    owner : estimator
        Who is fitted.
    context : sklearn.callback.CallbackContext or None
        The step in scikit-learn's tree; None where nobody can listen.
    given : dict
        `X`, `y` and `metadata` of the fit.
    fitted : callable or None
        Gives the attributes that make a copy of the owner one that was fitted so far.

    Attributes
    ----------
    stop : bool
        Whether a callback asked, at the end, for no more steps of this kind.
    """

    def __init__(
        self,
        owner: Any = None,
        context: Any = None,
        given: dict[str, Any] | None = None,
        fitted: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._owner, self._context = owner, context
        self._given, self._fitted = given or {}, fitted
        self.stop = False

    @classmethod
    def root(
        cls, owner: Any, n_parts: int, X: Any, y: Any, sample_weight: Any = None
    ) -> Task:
        """The fit of an estimator; its parts come one after the other."""
        start = getattr(owner, "_init_callback_context", None)
        if start is None:
            return cls()
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        given = {"X": X, "y": y, "metadata": weights}
        return cls(owner, start(max_subtasks=n_parts), given, dict)

    def part(
        self,
        name: str,
        n_parts: int = 0,
        fitted: Callable[[], dict[str, Any]] | None = None,
    ) -> Task:
        """A step of this step, which may have `n_parts` of its own."""
        if self._context is None:
            return self
        context = self._context.subcontext(task_name=name, max_subtasks=n_parts)
        return Task(self._owner, context, self._given, fitted)

    def handed_to(self, estimator: Any) -> AbstractContextManager[Any]:
        """Context in which this step is the fit of another estimator."""
        if self._context is None:
            return nullcontext()
        within: AbstractContextManager[Any] = self._context.propagate_callback_context(
            estimator
        )
        return within

    def __enter__(self) -> Self:
        if self._context is not None:
            self._context.call_on_fit_task_begin(estimator=self._owner, **self._given)
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
                **self._given,
                reconstruction_attributes=self._fitted,
            )


#: A step that nobody hears of.
NO_TASK = Task()

# A context variable, so that no cache of fitted parts depends on who listens. Worker
# threads and processes do not see it: there nobody is told.
_HANDED: ContextVar[Task] = ContextVar("handed", default=NO_TASK)


@contextmanager
def handing(task: Task) -> Iterator[None]:
    """Let what is called inside take over a step, by `handed`."""
    token = _HANDED.set(task)
    try:
        yield
    finally:
        _HANDED.reset(token)


def handed() -> Task:
    """The step to take over."""
    return _HANDED.get()
