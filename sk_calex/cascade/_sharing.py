"""How a cascade that is fitted takes part in shared fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from sklearn.utils.metadata_routing import process_routing

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._content import input_digest
from sk_calex.cascade._fit_cache import SharedFits
from sk_calex.cascade._fit_key import fit_request, stamp_of
from sk_calex.cascade._runtime import tabulate

__all__ = ["SharingCascade"]

# What a fit sets besides the attributes that end in an underscore.
_ALSO_FITTED = frozenset(
    {
        "_calibration_codes",
        "_calibration_weight",
        "_fused",
        "_head_macs",
        "_output_order",
    }
)


class SharingCascade(BaseCascade):
    """Base of the cascades whose clones share what they trained; see `SharedFits`.

    A cascade that was never cloned shares nothing and looks nothing up. One whose fit
    was recalled answers samples that came before, to it or to its siblings, from what
    the stages said of them then.
    """

    knob: ClassVar[str]

    def _moving_params(self) -> frozenset[str]:
        """Parameters that only move a trained cascade along its curve."""
        return frozenset({self.knob, "policy"})

    def _unused_params(self) -> frozenset[str]:
        """Parameters that do nothing, given the others."""
        return frozenset()

    @contextmanager
    def _recalled(
        self, X: Any, y: Any, sample_weight: Any, params: dict[str, Any]
    ) -> Iterator[bool]:
        """Tell whether a clone was trained alike, which has then set the attributes.

        If not, what is trained inside the ``with`` is kept for other clones.
        """
        self.__dict__.pop("_shared_fit", None)
        fits: SharedFits | None = self.__dict__.get("_shared_fits")
        request = None
        if fits is not None:
            routed = process_routing(self, "fit", **params) if params else None
            request = fit_request(
                self,
                X,
                y,
                sample_weight,
                {} if routed is None else routed.splitter.split,
                moving=self._moving_params(),
                unused=self._unused_params(),
            )
        if fits is None or request is None:
            yield False
            return
        with fits.turn(request):
            fit = fits.find(request)
            if fit is not None:
                for name in _fitted_state(self):
                    delattr(self, name)  # of an earlier fit
                self.__dict__.update(_copied(fit.state))
                if stamp_of(self) == fit.stamp:
                    self._shared_fit = fit
                    yield True
                    return
            yield False
            fits.keep(request, _copied(_fitted_state(self)), stamp_of(self))

    def _shared_table(self, X: Any) -> StageTable | None:
        fit = self.__dict__.get("_shared_fit")
        if fit is None or stamp_of(self) != fit.stamp:
            return None
        digest = input_digest(X)
        return None if digest is None else fit.table(digest, lambda: self._asked(X))

    def _asked(self, X: Any) -> StageTable:
        sources, n = self._feature_sources(X)
        return tabulate(sources, self._answers(), n, len(self.classes_))

    def __sklearn_clone__(self) -> Self:
        new: Self = super().__sklearn_clone__()
        new._shared_fits = self.__dict__.setdefault("_shared_fits", SharedFits())
        return new

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        for name in ("_shared_fits", "_shared_fit"):
            state.pop(name, None)
        return state


def _fitted_state(cascade: BaseCascade) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(cascade).items()
        if (name.endswith("_") and not name.startswith("_")) or name in _ALSO_FITTED
    }


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The same objects; lists anew, so that one clone's is not another one's."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in state.items()
    }
