"""The same comparison of methods on a ResNet-10."""

from __future__ import annotations

from .compare_methods import ahead, table_of
from .formats import METHODS, Record, Sentence, Table

SHOWN = ("CalexNet", "CalexNet, ensemble", "BoostNet", "ZTW")


def methods(record: Record) -> Table:
    """Show the methods that were near each other on the ResNet-18."""
    return table_of(record, SHOWN)


TABLES = {"methods": methods}


def against_boostnet(record: Record) -> list[str]:
    """Write CalexNet's lead over BoostNet at 40, 50 and 60 %, and its lag at 30."""
    at_30, *later = ahead(record, "CalexNet", "BoostNet")
    return [*later, at_30]


SENTENCES = (
    Sentence(
        METHODS,
        "CalexNet is {}, {} and {} points above BoostNet at 40, 50 and 60 %, and {} "
        "behind at 30 %",
        against_boostnet,
    ),
)
