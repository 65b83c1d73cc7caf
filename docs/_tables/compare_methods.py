"""Every method on the same frozen features: accuracy against FLOPs saved."""

from __future__ import annotations

from typing import Any

import numpy as np

from .formats import BENCHMARKS, METHODS, Record, Sentence, Table, mean_sd, percent

SAVINGS = ["30 %", "40 %", "50 %", "60 %"]  # the record has 70 %, too: few get there
# In the order of the page: ours, its reference, other methods, other rules.
ORDER = (
    *("CalexNet", "CalexNet, ensemble", "reference"),
    *("BTS-EE", "PTEENet", "ZTW", "BoostNet", "SDN", "BranchyNet", "PABEE"),
    *("CalexNet, precision margins", "CalexNet, shared threshold"),
    *("CalexNet, regret-priced", "CalexNet, learned gate", "CalexNet, quota"),
)
NO_RULES = [
    *("CalexNet", "CalexNet, ensemble", "BoostNet", "BranchyNet", "ZTW", "SDN"),
    *("reference", "BTS-EE", "PTEENet", "PABEE"),
]
NEAR_RULES = ("regret-priced", "learned gate", "quota")
REACH_70 = ("ZTW", "SDN", "PABEE")


def cells(found: Any) -> list[str]:
    """Give what a method has at given savings, and saves at given losses."""
    at, saved = found["accuracy_at"], found["reduction_at_drop"]
    last = len(SAVINGS)
    shares = zip(saved["mean"], saved["sd"], strict=True)
    return [
        *map(mean_sd, at["mean"][:last], at["sd"][:last]),
        *(mean_sd(*pair, digits=1) for pair in shares),
    ]


def table_of(record: Record, names: tuple[str, ...]) -> Table:
    """Show some methods, one a row."""
    rows = [[name, *cells(record["summary"][name])] for name in names]
    return Table(["method", *SAVINGS, "saved at -0.5", "-1", "-2"], rows)


def methods(record: Record) -> Table:
    """Show every method."""
    return table_of(record, ORDER)


def at_half_a_point(record: Record) -> Table:
    """Show what the methods save at half a point lost."""
    found = [record["summary"][n]["reduction_at_drop"]["mean"][0] for n in NO_RULES]
    headers = ["CalexNet", "with `ensemble=True`", *NO_RULES[2:]]
    return Table(headers, [[f"{percent(saved)} %" for saved in found]])


TABLES = {"methods": methods, "at_half_a_point": at_half_a_point}


def accuracies(record: Record, name: str) -> np.ndarray:
    """Give a method's mean accuracy at 30, 40, 50 and 60 % saved, in per cent."""
    mean = record["summary"][name]["accuracy_at"]["mean"][: len(SAVINGS)]
    return 100 * np.array(mean, dtype=float)


def ahead(record: Record, one: str, other: str) -> list[str]:
    """Write by how many points one method is away from another, at each saving."""
    points = accuracies(record, one) - accuracies(record, other)
    return [f"{abs(each):.1f}" for each in points]


def against_the_best(record: Record) -> list[str]:
    """Write CalexNet's lead over BoostNet at 50 and 60 %, and its lag at 30 and 40."""
    at_30, at_40, at_50, at_60 = ahead(record, "CalexNet", "BoostNet")
    return [at_50, at_60, at_30, at_40]


def ensemble_and_boostnet(record: Record) -> list[str]:
    """Write both at 40 %, the lag at 30 %, and the leads at 50 and 60 %."""
    names = ("CalexNet, ensemble", "BoostNet")
    at_40 = [f"{accuracies(record, name)[1]:.1f}" for name in names]
    at_30, _, *later = ahead(record, *names)
    return [*at_40, at_30, *later]


def rules_apart(record: Record) -> list[str]:
    """Write how far the rules lie apart, and what precision margins lose to ours."""
    near = ["CalexNet", *(f"CalexNet, {rule}" for rule in NEAR_RULES)]
    apart = np.ptp([accuracies(record, name) for name in near], axis=0).max()
    precision = accuracies(record, "CalexNet, precision margins")
    lost = accuracies(record, "CalexNet") - precision
    return [f"{points:.1f}" for points in (apart, lost.min(), lost.max())]


def most_saved(record: Record, name: str) -> str:
    """Write the largest saving that a method reaches with any seed."""
    runs = [run for run in record["runs"] if run["method"] == name]
    return percent(max(max(run["test"]["flops_reduction"]) for run in runs))


def at_70(record: Record) -> list[str]:
    """Write how much CalexNet saves at most, and what others have at 70 %."""
    found = [record["summary"][n]["accuracy_at"]["mean"][4] for n in REACH_70]
    return [most_saved(record, "CalexNet"), *(percent(mean) for mean in found)]


def oracle(record: Record) -> list[str]:
    """Write accuracy and saving of the first right branch, mean over seeds."""
    found = [run["oracle"] for run in record["runs"] if "oracle" in run]
    return [
        percent(np.mean([each[key] for each in found]))
        for key in ("accuracy", "flops_reduction")
    ]


def minutes(record: Record, key: str) -> list[float]:
    """Give how long all fits of a seed took, by seed."""
    seconds: dict[int, float] = {}
    for run in record["runs"]:
        seconds[run["seed"]] = seconds.get(run["seed"], 0) + run.get(key, 0)
    return [seconds[seed] / 60 for seed in sorted(seconds)]


def fitting_times(record: Record) -> list[str]:
    """Write the clock's and the processor's minutes, side by side and alone."""
    two_threads, *clock = minutes(record, "fit_seconds")
    processor = float(np.mean(minutes(record, "fit_cpu_seconds")[1:]))
    # Three seeds on two cores that do nothing else, and as it was.
    alone, as_it_was = 3 * processor / 2, 3 * float(np.mean(clock)) / 2
    return [
        f"{np.mean(clock):.0f}",
        f"{processor:.1f}",
        *(f"{each:.0f}" for each in (alone, as_it_was, two_threads)),
    ]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "at 50 and 60 % saved yes, by {} and {} points over the next; at 30 and 40 % "
        "BoostNet is better, by {} and {}",
        against_the_best,
    ),
    Sentence(
        METHODS,
        "70 % is more than CalexNet's margins save ({} % at most) and is reached with "
        "lighter heads alone: ZTW {}, SDN {}, PABEE {}",
        at_70,
    ),
    Sentence(METHODS, "right branch of CalexNet, has {} % at {} % saved", oracle),
    Sentence(
        METHODS,
        "CalexNet is so everywhere: by {} points at 30 % and {} at 60 %",
        lambda record: ahead(record, "CalexNet", "reference")[::3],
    ),
    Sentence(
        METHODS,
        "({} and {} points above BoostNet, the next). **At 30 and 40 % BoostNet is "
        "better**, by {} and {} points",
        against_the_best,
    ),
    Sentence(
        METHODS,
        "and at 30 % ZTW and BranchyNet are too, by {} each",
        lambda record: [ahead(record, "ZTW", "CalexNet")[0]],
    ),
    Sentence(
        METHODS,
        "at 30 % it has {} %, more than the backbone ({})",
        lambda record: [
            f"{accuracies(record, 'BoostNet')[0]:.1f}",
            percent(record["summary"]["BoostNet"]["backbone_accuracy"]),
        ],
    ),
    Sentence(
        METHODS,
        "CalexNet is level with BoostNet at 40 % ({} and {}), {} points behind at "
        "30 %, and {} and {} points above at 50 and 60 %",
        ensemble_and_boostnet,
    ),
    Sentence(
        METHODS,
        "and the quota lie within {} points. The paper's precision margins, one bar a "
        "class on a mean, lose {} to {} points to local margins",
        rules_apart,
    ),
    Sentence(
        METHODS,
        "each in one thread, {} minutes by the clock, with other work taking some of "
        "the two cores, and {} minutes of processor time each: three seeds are {} "
        "minutes of two cores that do nothing else, and were {} like this. One seed in "
        "two threads took {} minutes",
        fitting_times,
    ),
)
