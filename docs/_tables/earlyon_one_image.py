"""One image at a time against earlyon, at equal accuracy."""

from __future__ import annotations

from .formats import Record, Table, percent, spread

ARMS = ("cascade", "earlyon")


def chosen(record: Record) -> Table:
    """Show what was chosen for each aim, and the processor time of an image."""
    threads = sorted({n for aim in record["aims"] for n in aim["threads"]}, key=int)
    headers = ["lost on validation", *(f"{arm}, test accuracy %" for arm in ARMS)]
    headers += [f"{arm}, FLOPs saved %" for arm in ARMS]
    for n in threads:
        words = f"{n} thread{'s' * (n != '1')}"
        headers += [f"plain over cascade, {words}", f"earlyon over cascade, {words}"]
    rows = []
    for aim in record["aims"]:
        row = [f"{percent(aim['aim'])} points"]
        for key, digits in (("accuracy", 2), ("flops_reduction", 1)):
            row += [
                percent(point["test"][key], digits) if point is not None else "-"
                for point in (aim["points"][arm] for arm in ARMS)
            ]
        for n in threads:
            ratios = aim["threads"].get(n, {}).get("over_cascade")
            row += [
                spread(ratios[arm]) if ratios is not None else "-"
                for arm in ("plain module", "earlyon")
            ]
        rows.append(row)
    return Table(headers, rows)


TABLES = {"chosen": chosen}
