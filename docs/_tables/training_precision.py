"""Updates of branch heads in bfloat16 and channels last against float32."""

from __future__ import annotations

from .formats import Record, Table, spread

HEADS = {"default": "default head", "conv": "two convolutions, 24 and 32 wide"}


def updates(record: Record) -> Table:
    """Show the time of an update over that in float32, by head and way."""
    rows = [
        [way, *(spread(record["updates"][head][way]["over_float32"]) for head in HEADS)]
        for way in record["updates"]["default"]
        if way != "float32"
    ]
    return Table(["over float32", *HEADS.values()], rows)


TABLES = {"updates": updates}
