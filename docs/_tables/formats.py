"""Tables and sentences, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Table(NamedTuple):
    """A table's header cells and rows of cells."""

    headers: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Write the table in Markdown."""
        if any(len(row) != len(self.headers) for row in self.rows):
            raise ValueError(f"rows of different lengths below {self.headers}.")
        head, *rows = (
            f"| {' | '.join(cells)} |".replace("|  |", "| |")
            for cells in (self.headers, *self.rows)
        )
        return "\n".join([head, "|---" * len(self.headers) + "|", *rows])


class Sentence(NamedTuple):
    """Words of a page with ``{}`` for each figure, and the figures of a record."""

    page: str  # its path in the repository
    words: str
    figures: Callable[[Record], Iterable[str]]


def percent(share: float, digits: int = 1) -> str:
    """Write a share in per cent, without the sign."""
    return signless_zero(f"{100 * share:.{digits}f}")


def signed(share: float, digits: int = 2) -> str:
    """Write a share in per cent with its sign."""
    return f"{100 * share:+.{digits}f}"


def mean_sd(mean: float | None, sd: float | None, digits: int = 2) -> str:
    """Write the mean and the standard deviation of shares in per cent."""
    if mean is None:
        return "-"
    if sd is None:
        return percent(mean, digits)
    return f"{percent(mean, digits)} ± {percent(sd, digits)}"


def spread(measured: Mapping[str, float], digits: int = 2) -> str:
    """Write a median with its smallest and largest value."""
    median, low, high = (
        f"{measured[key]:.{digits}f}" for key in ("median", "min", "max")
    )
    return f"{median} ({low} to {high})"


def spread_figures(measured: Mapping[str, float], digits: int = 2) -> list[str]:
    """Give a median, its smallest and its largest value, each a figure of its own."""
    return [f"{measured[key]:.{digits}f}" for key in ("median", "min", "max")]


def thousands(number: float) -> str:
    """Write a whole number with a comma between thousands."""
    return f"{number:,.0f}"


def signless_zero(number: str) -> str:
    """Drop the minus of what is zero once rounded."""
    return number.removeprefix("-") if float(number) == 0 else number


# The pages with most of the figures.
README = "README.md"
BENCHMARKS = "docs/background/benchmarks/index.md"
CIFAR = "docs/background/benchmarks/cifar100_coarse.md"
METHODS = "docs/background/benchmarks/all_methods.md"
TIME = "docs/background/benchmarks/time_and_memory.md"
STORE = "docs/background/benchmarks/feature_store.md"
GUARANTEES = "docs/guide/guarantees.md"
