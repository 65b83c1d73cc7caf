"""Tables that notebooks show below scikit-learn's diagram of an estimator.

Plain HTML tables: no script, nothing fetched, colours for light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sklearn.base import BaseEstimator
from torch import nn

__all__ = ["Cell", "Named", "SummaryMixin", "named", "picked", "si", "table"]

# They keep a page small, whatever the network and the labels.
MAX_ROWS = 10
_MAX_TEXT = 30
_MAX_TITLE = 60
_MAX_LINE = 200
_UNITS = ("", " k", " M", " G", " T")

_STYLE = (
    "<style>.sk-calex{overflow-x:auto;margin:.5em 0}"
    ".sk-calex table{border-collapse:collapse;font-size:.9em}"
    ".sk-calex caption{text-align:left;white-space:nowrap;font-weight:bold}"
    ".sk-calex th,.sk-calex td{padding:.15em .6em;text-align:right;color:inherit;"
    "background:none;border-bottom:1px solid rgba(128,128,128,.4);white-space:nowrap;"
    "font-variant-numeric:tabular-nums}"
    ".sk-calex .l{text-align:left}"
    ".sk-calex .b{display:inline-block;width:4em;height:.7em;margin-right:.6em;"
    "background:rgba(128,128,128,.25)}"
    ".sk-calex .b i{display:block;height:100%;background:#4285f4}"
    ".sk-calex p{margin:.3em 0;opacity:.75;font-size:.85em}</style>"
)

_AT_TOP: ContextVar[object] = ContextVar("at_top", default=None)


class SummaryMixin:
    """Add `_summary` to what scikit-learn shows of an estimator in a notebook."""

    def _summary(self) -> str:
        """Write the HTML of the estimator's own table; empty where it has none."""
        raise NotImplementedError

    def _html_repr(self) -> str:
        # scikit-learn calls it where display="diagram", in every version we support.
        token = _AT_TOP.set(self)
        try:
            diagram: str = BaseEstimator._html_repr(self)
        finally:
            _AT_TOP.reset(token)
        return diagram + self._summary()

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        params = super()._get_params_html(*args, **kwargs)  # type: ignore[misc]
        params.update(named(dict(params)))
        return params

    def _get_fitted_attr_html(self, doc_link: str = "") -> Sequence[Any]:
        # scikit-learn 1.9 reads every attribute here: it would hash the weights for
        # `fingerprint_`, and fail where costs are unknown. Ours takes its place. It is
        # also called for parts of a fitted estimator, which may not be fitted.
        if _AT_TOP.get() is self or not hasattr(self, "layout_"):
            return ()
        return _Inner((self._summary(),))


class _Inner(tuple[str]):
    """The HTML that scikit-learn writes into the box of an estimator inside another."""

    def _repr_html_inner(self) -> str:
        return self[0]


class Named:
    """Stand in for an object whose class name is enough to print."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __repr__(self) -> str:
        return f"<{type(self.thing).__name__}>"


def named(params: dict[str, Any]) -> dict[str, Any]:
    """Replace modules, whose layers torch would print, by their names."""
    return {
        name: Named(value) if isinstance(value, nn.Module) else value
        for name, value in params.items()
    }


@dataclass(frozen=True)
class Cell:
    """A cell: its text, its tooltip, and the share (0 to 1) of the bar beside it."""

    text: str
    title: str = ""
    share: float | None = None

    def html(self, tag: str) -> str:
        """Write the element, with all text escaped."""
        title = f' title="{_escaped(self.title, _MAX_TITLE)}"' if self.title else ""
        bar = ""
        if self.share is not None:
            bar = (
                f'<span class="b"><i style="width:{100 * self.share:.0f}%"></i></span>'
            )
        return f"<{tag}{title}>{bar}{_escaped(self.text)}</{tag.split()[0]}>"


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    note: str = "",
) -> str:
    """Write a table whose first column names the rows, and a line below it."""
    head = "".join(
        Cell(text).html('th scope="col"' + ' class="l"' * (not i))
        for i, text in enumerate(header)
    )
    body = "".join(f"<tr>{''.join(_row(row))}</tr>" for row in rows)
    below = f"<p>{_escaped(note, _MAX_LINE)}</p>" if note else ""
    return (
        f'{_STYLE}<div class="sk-calex"><table>'
        f"<caption>{_escaped(caption, _MAX_LINE)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
    )


def _row(cells: Sequence[Cell | str]) -> Iterator[str]:
    for i, cell in enumerate(cells):
        tag = "td" if i else 'th scope="row" class="l"'
        yield (Cell(cell) if isinstance(cell, str) else cell).html(tag)


def picked(n_taps: int) -> list[int | None]:
    """Choose the stages that get a row, the last included; None stands for a gap.

    Examples
    --------
    >>> from sk_calex.utils._html import picked
    >>> picked(2)
    [0, 1, 2]
    >>> picked(40)[-3:]
    [8, None, 40]
    """
    if n_taps <= MAX_ROWS:
        return list(range(n_taps + 1))
    return [*range(MAX_ROWS - 1), None, n_taps]


def si(number: float) -> str:
    """Write a number with three digits and a unit.

    Examples
    --------
    >>> from sk_calex.utils._html import si
    >>> si(0), si(27648), si(999_600), si(1.82e9)
    ('0', '27.6 k', '1 M', '1.82 G')
    """
    power = 0
    while abs(float(f"{number:.3g}")) >= 1000 and power < len(_UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{float(f'{number:.3g}'):g}{_UNITS[power]}"


def _escaped(text: str, longest: int = _MAX_TEXT) -> str:
    # Shortened first, so that no entity is cut in two.
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return html.escape(short)
