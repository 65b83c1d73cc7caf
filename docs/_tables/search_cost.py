"""What a search over twenty margins costs, against one over a single margin."""

from __future__ import annotations

from .formats import BENCHMARKS, TIME, Record, Sentence, Table, spread, thousands

SETTINGS = {
    ("digits_24_epochs", "features"): (
        "digits, small ResNet, 1,500 rows, 24 epochs; features as `X`"
    ),
    ("digits_24_epochs", "samples"): "the same, images as `X`",
    ("digits_24_epochs", "samples_with_store"): (
        "the same, images, features in a store"
    ),
    ("cifar100_6_epochs", "features"): (
        "CIFAR-100, ResNet-18 features, 600 rows, 6 epochs"
    ),
    ("cifar100_24_epochs", "features"): "the same, 24 epochs",
}


def ratios(record: Record) -> Table:
    """Show the processor time of twenty margins over that of one."""
    rows = [
        [words, spread(record[data][given]["ratio_processor"])]
        for (data, given), words in SETTINGS.items()
    ]
    return Table(["data", "20 margins over one"], rows)


TABLES = {"ratios": ratios}


def cheapest_and_dearest(record: Record) -> list[str]:
    """Write the smallest and the largest of the ratios."""
    medians = [record[d][g]["ratio_processor"]["median"] for d, g in SETTINGS]
    return [f"{min(medians):.2f}", f"{max(medians):.2f}"]


def heads_trained(record: Record) -> list[str]:
    """Write how many heads are trained, whatever the number of margins."""
    found = {
        heads
        for data, given in SETTINGS
        for heads in record[data][given]["heads_trained"].values()
    }
    return [str(heads) for heads in found]


SENTENCES = (
    Sentence(BENCHMARKS, "{} to {} times a fit with one", cheapest_and_dearest),
    Sentence(TIME, "Clones share what they train: {} heads either way.", heads_trained),
    Sentence(
        TIME,
        "to know them again, {} numbers each on CIFAR-100",
        lambda record: [thousands(record["cifar100_6_epochs"]["settings"]["width"])],
    ),
    Sentence(
        TIME,
        "Two settings of the branch cost {} heads",
        lambda record: [
            str(
                record["digits_24_epochs"]["two_settings_of_the_branch"][
                    "heads_trained"
                ]
            )
        ],
    ),
)
