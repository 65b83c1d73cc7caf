"""Training branches on cached features against running the backbone each time."""

from __future__ import annotations

from .formats import BENCHMARKS, TIME, Record, Sentence, Table, percent, spread

COMPARED = {
    "ratio_whole_backbone": (
        "the whole backbone in every update, as its soft targets ask"
    ),
    "ratio_stages_up_to_the_branch": "only the stages up to the branch, logits kept",
}


def ratios(record: Record) -> Table:
    """Show how many times as long an update takes with the backbone in the loop."""
    rows = [[words, spread(record[key], 1)] for key, words in COMPARED.items()]
    return Table(["compared with", "ratio of times"], rows)


TABLES = {"ratios": ratios}


def updates(record: Record) -> list[str]:
    """Write how many times as fast an update is, at least and at most."""
    medians = sorted(record[key]["median"] for key in COMPARED)
    return [f"{median:.1f}" for median in medians]


def fit_seconds(record: Record) -> list[str]:
    """Write how long a fit takes from cached features, and with the backbone."""
    seconds = record["scaled_fit_seconds"]
    return [f"{seconds['cached']:.0f}", f"{seconds['whole_backbone']:.0f}"]


def parts_of_an_update(record: Record) -> list[str]:
    """Write the shares of the passes, the optimizer and the gathering of rows."""
    shares = record["share_of_cached_update"]
    parts = ("forward_and_backward", "optimizer", "gather")
    return [percent(shares[part]["median"], 0) for part in parts]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "{} s for 3 x 12 epochs on 45,000 rows; an update is {} to {} times as fast",
        lambda record: [fit_seconds(record)[0], *updates(record)],
    ),
    Sentence(TIME, "the cached fit takes {} s, with the backbone {} s.", fit_seconds),
    Sentence(
        TIME,
        "Of a cached update {} % is the head's own forward and backward pass, {} % the "
        "optimizer, {} % gathering the rows.",
        parts_of_an_update,
    ),
)
