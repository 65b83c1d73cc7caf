"""The feature store against the bare torch loop and against other caches."""

from __future__ import annotations

from collections.abc import Mapping

from .formats import (
    BENCHMARKS,
    STORE,
    Record,
    Sentence,
    Table,
    percent,
    spread,
    spread_figures,
    thousands,
)

READ = {
    "read in chunks, warm": "rows read in pieces of 4,096",
    "read in chunks, cold": "the same, page cache dropped",
    "gather in memory, at once": "one matrix in memory, memory at hand",
    "gather to a map, at once": "one memory map, memory at hand",
    "transform, warm": "`transform`",
    "transform, cold": "`transform`, page cache dropped",
    "transform, cold, with digests": (
        "`transform`, page cache dropped, digests compared"
    ),
}
PASSES = ("nothing stored yet", "same folds again", "other folds")
CACHES = {
    "joblib.Memory": "`joblib.Memory` of each slice",
    "joblib.Memory, all rows, then sliced": (
        "`joblib.Memory` of all rows, then sliced"
    ),
    "zarr": "zarr",
    "zarr with crc32c": "zarr with crc32c",
    "store, gathered in memory": "the store, gathered in memory",
}
STEPS = (
    *("write", "open", "read in order, 4,096 a call"),
    *("read shuffled, 4,096 a call", "read shuffled, 65,536 a call"),
    "gather shuffled",
)
PLAIN_ARRAY = "an array in memory, shuffled, 4,096 a call"
COSTS = {
    "keys": "keys of the samples, SHA-256",
    "sha256": "digests of the rows, SHA-256",
    "write": "writing, with digests",
    "gather": "gathering them into one matrix",
    "transform, empty store": "all of it: `transform` into an empty store",
}


def short(measured: Mapping[str, float]) -> str:
    """Write a spread with one decimal below 10, and none above."""
    return spread(measured, 1 if measured["median"] < 10 else 0)


def reading(record: Record) -> Table:
    """Show times of reading back, and over that of extracting."""
    found = record["reading"]
    rows = [
        [
            words,
            short(found["microseconds_per_row"][step]),
            short(found["times_faster_than_extraction"][step]),
        ]
        for step, words in READ.items()
    ]
    return Table(["", "microseconds a row", "times as fast"], rows)


def costs(record: Record) -> Table:
    """Show what the steps of extraction to a store take."""
    time = record["extraction"]["wall"]["microseconds_per_row"]
    rows = [[words, short(time[step])] for step, words in COSTS.items()]
    return Table(["step", "microseconds a row"], rows)


def caches(record: Record) -> Table:
    """Show times of other caches over the store's."""
    passes = record["peers"]["passes"]
    rows = [
        [
            words,
            *(
                spread(passes[of][cache]["time_over_store"], 1)
                if cache in passes[of]
                else ""
                for of in PASSES
            ),
        ]
        for cache, words in CACHES.items()
    ]
    return Table(["", *PASSES], rows)


def sizes(record: Record) -> Table:
    """Show the time of each step and its peak memory, by number of rows."""
    found = record["scaling"]["sizes"]
    rows = []
    for step in STEPS:
        cells = []
        for size in found:
            measured = size["steps"][step]
            time, peak = measured["microseconds_per_row"], measured["peak_mib"]
            cells.append(f"{time['median']:.1f} / {peak['median']:.0f}")
        rows.append([step, *cells])
    times = [size["steps"][PLAIN_ARRAY]["microseconds_per_row"] for size in found]
    rows.append([f"*{PLAIN_ARRAY}*", *(f"{time['median']:.2f}" for time in times)])
    return Table(["step", *(thousands(size["rows"]) for size in found)], rows)


TABLES = {"reading": reading, "costs": costs, "caches": caches, "sizes": sizes}


def extraction(record: Record) -> list[str]:
    """Write the times over two loops by hand, and what gathering and hashing take."""
    wall = record["extraction"]["wall"]
    over, time = wall["time_over"], wall["microseconds_per_row"]
    loops = ("plain loop", "loop over stages")
    return [
        *(
            figure
            for loop in loops
            for figure in spread_figures(over[f"transform, empty store over {loop}"])
        ),
        *(
            f"{time[step]['median']:.0f}"
            for step in ("gather", "transform, empty store")
        ),
        percent(wall["share_of_transform_to_empty_store"]["hashing"]["median"]),
    ]


def hashing(record: Record) -> list[str]:
    """Write the shares of all hashing, and of the keys, in extraction to a store."""
    shares = record["extraction"]["wall"]["share_of_transform_to_empty_store"]
    return [percent(shares[part]["median"]) for part in ("hashing", "keys")]


def gigabytes(record: Record) -> str:
    """Write the size of the rows that were read."""
    return f"{record['reading']['settings']['bytes'] / 1e9:.1f}"


def new_memory(record: Record) -> list[str]:
    """Write what writing a new file takes, and what new memory does."""
    time = record["reading"]["microseconds_per_row"]
    steps = ("new file, after a pause", "new array, after a pause", "new file, at once")
    return [gigabytes(record), *(f"{time[step]['median']:.0f}" for step in steps)]


def times_as_fast(record: Record) -> list[str]:
    """Write how many times as fast reading is, and `transform`, without digests."""
    ratio = record["reading"]["times_faster_than_extraction"]
    steps = (
        *("read in chunks, cold", "read in chunks, warm"),
        *("transform, cold", "transform, warm"),
    )
    return [f"{ratio[step]['median']:.0f}" for step in steps]


def wrong_values(record: Record, cache: str) -> int:
    """Count the changed bytes that ended in wrong values without a word."""
    places = record["peers"]["one_byte_changed"][cache].values()
    return sum(each.get("not noticed, WRONG VALUES", 0) for each in places)


def damage(record: Record) -> list[str]:
    """Write how many changed bytes two caches missed, and how many a third refused."""
    refused = record["peers"]["one_byte_changed"]["zarr with crc32c"].values()
    return [
        *(str(wrong_values(record, cache)) for cache in ("joblib.Memory", "zarr")),
        str(sum(each.get("refused with an error", 0) for each in refused)),
    ]


def zarr_size(record: Record) -> list[str]:
    """Write the space that zarr takes as a share of the store's."""
    size = record["peers"]["bytes_on_disk"]
    return [percent(size["zarr.zarr"] / size["store"], 0)]


def growth(record: Record) -> list[str]:
    """Write how much the cost of a row grows over a hundred times the rows."""
    found = record["scaling"]["largest_to_smallest_time_per_row"]
    steps = (
        *("open", "read in order, 4,096 a call", "write", "gather shuffled"),
        "read shuffled, 65,536 a call",
    )
    return [f"{found[step]:.1f}" for step in steps]


def shuffled_growth(record: Record) -> list[str]:
    """Write the growth of small shuffled reads, and their times."""
    step = "read shuffled, 4,096 a call"
    scaling = record["scaling"]
    times = [
        size["steps"][step]["microseconds_per_row"]["median"]
        for size in (scaling["sizes"][0], scaling["sizes"][-1])
    ]
    found = [scaling["largest_to_smallest_time_per_row"][step], *times]
    return [f"{each:.1f}" for each in found]


def digests(record: Record) -> list[str]:
    """Write the times of comparing digests over those of not doing so."""
    over = record["verify"]["time_over_never"]
    return [
        *spread_figures(over["first, at first"], 1),
        *spread_figures(over["first, afterwards"], 2),
        *spread_figures(over["always, few rows a call"], 0),
    ]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "reading is {} to {} times as fast as extracting, `transform` {} to {} times",
        times_as_fast,
    ),
    Sentence(
        STORE,
        "takes {} ({} to {}) of the time of a loop by hand with hooks and pooling, "
        "and {} ({} to {}) of a loop over the library's own, faster stages: above "
        "1.10, because the matrix that it returns is gathered from the store once "
        "more ({} of {} microseconds a row). All hashing, keys and digests, is {} % of "
        "it.",
        extraction,
    ),
    Sentence(
        "docs/background/reliability.md",
        "All hashing is {} % of extracting to an empty store, the keys {} %:",
        hashing,
    ),
    Sentence(
        STORE,
        "60,000 rows ({} GB), against extracting them at {} microseconds a row",
        lambda record: [
            gigabytes(record),
            f"{record['reading']['microseconds_per_row']['extract']['median']:.0f}",
        ],
    ),
    Sentence(
        STORE,
        "it writes {} GB into a new file. On this virtual machine that alone takes {} "
        "microseconds a row, as much as the whole `transform`, where memory has to "
        "come back from the host (as much new memory without a file: {}), and {} where "
        "it is at hand.",
        new_memory,
    ),
    Sentence(STORE, "it takes {} % of the store's space here", zarr_size),
    Sentence(
        STORE,
        "`joblib.Memory`, {} ended in wrong values without a word; with zarr at its "
        "defaults, {}; zarr with crc32c refused all {} with an error",
        damage,
    ),
    Sentence(
        STORE,
        "the cost of a row grows {}-fold for opening, {} for reading in order, {} for "
        "writing, {} for `gather` and {} for 65,536 rows a call",
        growth,
    ),
    Sentence(
        STORE,
        "**{}-fold, for 4,096 shuffled rows a call**, from {} to {} microseconds",
        shuffled_growth,
    ),
    Sentence(
        STORE,
        "A plain array in memory grows {}-fold",
        lambda record: [
            f"{record['scaling']['largest_to_smallest_time_per_row'][PLAIN_ARRAY]:.1f}"
        ],
    ),
    Sentence(
        STORE,
        'Reading with `verify="first"` takes {} ({} to {}) times as long as with '
        '`"never"` the first time, {} ({} to {}) afterwards.',
        lambda record: digests(record)[:6],
    ),
    Sentence(
        STORE,
        "and {} ({} to {}) times with 250 shuffled rows a call.",
        lambda record: digests(record)[6:],
    ),
)
