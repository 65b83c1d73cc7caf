"""Do the promises hold? Risk control and the monitor, on draws from known populations.

A cascade is trained once on the ResNet18 of CIFAR-100 with 20 coarse classes; what its
stages say of the test images, and of corrupted ones, is kept beside the cache. The
10,000 test images then are a population whose true risks are known: certifying rows are
drawn from it with replacement, 1,000 times for each size. Thresholds come from the
validation rows alone.

    python examples/benchmarks/guarantees.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
from _common import cifar_backbone, cifar_splits, environment, read_json, write_json
from PIL import Image, ImageFilter
from scipy.stats import binom

from sk_calex import (
    CascadeClassifier,
    PrototypePoolingClassifier,
    SurvivorThresholdCalibrator,
    accuracy_drop_bound,
)
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.cascade._costs import depth_prices
from sk_calex.inspection._change_detection import (
    BETS,
    N_BINS,
    ConformalRanks,
    ShiryaevRoberts,
    confidence_bins,
)
from sk_calex.model_selection._estimators import SEARCH_MARGINS
from sk_calex.model_selection._risk_control._certify import PathAnswers, certify
from sk_calex.model_selection._risk_control._operating_path import PathPlan
from sk_calex.model_selection._risk_control._paired_test import (
    disagreement_p_value,
    drop_p_value,
    nuisance_error_of,
)

RISKS = (0.005, 0.01, 0.02)
ERRORS = (0.1, 0.05)
SIZES = (1_000, 5_000, 10_000)
SEED = 0


# -- probabilities ---------------------------------------------------------------------


def corruptions(images, rng):
    """Name and images, of uint8 and shape (n, 3, 32, 32), for five kinds."""

    def blurred(image):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture = picture.filter(ImageFilter.GaussianBlur(1))
        return np.asarray(picture).transpose(2, 0, 1)

    def rounded(values):
        return values.clip(0, 255).round().astype(np.uint8)

    x = images.astype(np.float32)
    yield "blur, radius 1", np.stack([blurred(image) for image in images])
    yield "half the contrast", rounded((x - 127.5) * 0.5 + 127.5)
    yield "noise, sd 25.5", rounded(x + rng.normal(0, 25.5, x.shape))
    yield "noise, sd 10", rounded(x + rng.normal(0, 10, x.shape))
    yield "40 % darker", rounded(x * 0.6)


def make_probabilities(cache, path):
    """Train the cascade and keep what its stages say."""
    train, test, split = cifar_splits()
    backbone = cifar_backbone(cache, verbose=1).fit(train.data)
    features, test_features = (backbone.transform(part.data) for part in (train, test))
    cascade = CascadeClassifier(
        branch=PrototypePoolingClassifier(max_iter=12),
        input="features",
        cv=split,
        random_state=SEED,
        verbose=1,
    ).fit(features, train.target)
    said = {
        "validation": cascade.stage_probabilities(features[train.val]),
        "test": cascade.stage_probabilities(test_features),
    }
    bare = cifar_backbone(None).fit(test.data[:64])  # seen once: not worth keeping
    rng = np.random.default_rng(SEED)
    for name, images in corruptions(np.asarray(test.data), rng):
        said[name] = cascade.stage_probabilities(bare.transform(images))
    np.savez(
        path,
        **{name: proba.astype(np.float32) for name, proba in said.items()},
        validation_y=train.target[train.val],
        test_y=test.target,
        costs=np.divide(*depth_prices(cascade, None)),
    )


def read_probabilities(path):
    """Tables of all stages' answers by name, the labels, and the relative costs."""
    with np.load(path) as file:
        arrays = dict(file)
    labels = {
        part: arrays.pop(f"{part}_y").astype(int) for part in ("validation", "test")
    }
    costs, tables = arrays.pop("costs"), {}
    for name, proba in arrays.items():
        proba = proba.astype(np.float64)
        tables[name] = StageTable.from_probabilities(
            proba / proba.sum(2, keepdims=True)
        )
    return tables, labels, costs


# -- risk control ----------------------------------------------------------------------


def path_on(table, labels, agreement, costs, risk, max_risk):
    """The automatic path of local margins, from the validation rows."""
    target = table.predicted[-1] if agreement else labels

    def rule_at(margin):
        rule = SurvivorThresholdCalibrator(margin, margin_mode="local")
        return rule.fit(table, target)

    given = CalibrationSet(table, labels, np.ones(len(labels)))
    plan = PathPlan(rule_at, given, lambda rule: costs, risk)  # all heads run
    return plan.span(SEARCH_MARGINS, max_risk)


def risk_control(tables, labels, costs, n_draws):
    """Violations and savings over draws, for each size, risk and error."""
    validation, population, truth = tables["validation"], tables["test"], labels["test"]
    found = []
    for risk in ("accuracy_drop", "disagreement"):
        for max_risk in RISKS:
            agreement = risk == "disagreement"
            path = path_on(
                validation, labels["validation"], agreement, costs, risk, max_risk
            )
            whole = path_on(validation, labels["validation"], agreement, costs, risk, 1)
            settings = {"risk": risk, "max_risk": max_risk}
            sides = {}
            for kind, points in (("certified", path), ("estimated", whole)):
                rows = outcomes_by_row(points, population, truth, costs)
                sides[kind] = (rows, *truth_of(rows, risk))
            to_label = sides["certified"][0][2].any(axis=0).mean()
            for n in SIZES:
                drawn = {
                    kind: draw(side[0], n, n_draws) for kind, side in sides.items()
                }
                looks = choose_by_estimate(drawn["estimated"], n, risk, max_risk)
                for error in ERRORS:
                    cell = settings | {"n": n, "error": error, "points": len(path)}
                    holds = choose_certified(
                        drawn["certified"], n, risk, max_risk, error
                    )
                    for kind, best in (("certified", holds), ("estimated", looks)):
                        _, true_risk, true_saved = sides[kind]
                        cell[kind] = {
                            "violations": float((true_risk[best] > max_risk).mean()),
                            "flops_saved": float(true_saved[best].mean()),
                            "fallbacks": float((best == 0).mean()),
                        }
                    limit = error + 2 * np.sqrt(error * (1 - error) / n_draws)
                    broken = cell["certified"]["violations"]
                    cell["within_limit"] = bool(broken <= limit)
                    cell["rows_to_label"] = float(to_label)
                    found.append(cell)
                    show_cell(cell)
    return found


def truth_of(rows, risk):
    """Risk and savings of each point on the population, the last stage alone first."""
    lost, gained, differ, cost = rows.mean(axis=2)
    risks = differ if risk == "disagreement" else lost - gained
    return np.append(0.0, risks), np.append(0.0, 1 - cost)


def outcomes_by_row(path, table, truth, costs):
    """Lost, gained, differing and cost of each row at each point: (4, points, rows)."""
    last, everyone, found = table.predicted[-1], np.arange(len(truth)), []
    for rule in path.rules:
        depth = rule.depth(table)
        answer = table.predicted[depth, everyone]
        right, also = last == truth, answer == truth
        found.append([right & ~also, also & ~right, answer != last, costs[depth]])
    return np.array(found, dtype=np.float64).swapaxes(0, 1)


def draw(rows, n, n_draws):
    """Sums over `n` rows drawn with replacement, of shape (4, points, draws)."""
    rng, size = np.random.default_rng([SEED, n]), rows.shape[2]
    times = np.stack(
        [
            np.bincount(rng.integers(size, size=n), minlength=size)
            for _ in range(n_draws)
        ],
        axis=1,
    )
    return rows @ times


def choose_certified(drawn, n, risk, max_risk, error):
    """Points that the fixed sequence of tests allows; 0 is the last stage alone."""
    chosen = []
    for lost, gained, differ, cost in drawn.transpose(2, 0, 1):
        certified = 0
        for a, b, k in zip(lost, gained, differ, strict=True):
            if risk == "disagreement":
                p_value = disagreement_p_value(int(k), n, max_risk)
            else:
                nuisance = nuisance_error_of(error)
                p_value = drop_p_value(round(a), round(b), n, max_risk, nuisance)
            if p_value > error:
                break
            certified += 1
        saved = np.append(0.0, 1 - cost[:certified] / n)
        chosen.append(saved.argmax())
    return np.array(chosen)


def choose_by_estimate(drawn, n, risk, max_risk):
    """Points that save most among those whose risk on the rows is within the limit."""
    lost, gained, differ, cost = drawn
    seen = (differ if risk == "disagreement" else lost - gained) / n
    saved = np.where(seen <= max_risk, 1 - cost / n, -1.0)
    return np.vstack([np.zeros(saved.shape[1]), saved]).argmax(axis=0)


def show_cell(cell):
    certified, estimated = cell["certified"], cell["estimated"]
    print(
        f"{cell['risk']:13} n={cell['n']:6,} risk {cell['max_risk']:.3f} error "
        f"{cell['error']:.2f}: broken {certified['violations']:.3f}, saved "
        f"{certified['flops_saved']:6.1%}, fallback {certified['fallbacks']:.2f}; "
        f"uncertified {estimated['violations']:.3f}, {estimated['flops_saved']:.1%}; "
        f"to label {cell['rows_to_label']:.1%}",
        flush=True,
    )


# -- the test itself -------------------------------------------------------------------


def size_of_test():
    """Probability of a rejection on the boundary of the null, for each (n, q, eps).

    Exact, by adding up all outcomes: for each number N of rows that differ, the most
    losses that the test rejects, and their binomial probability.
    """
    found = []
    for error in ERRORS:
        for n in (300, *SIZES):
            for max_risk in RISKS:
                critical = {}
                for share in (max_risk, 0.03, 0.1, 0.2, 0.4):
                    reach = 6 * np.sqrt(n * share) + 10
                    differ = np.arange(max(0, n * share - reach), n * share + reach + 1)
                    differ = differ[differ <= n].astype(int)
                    for N in differ:
                        if N not in critical:
                            critical[N] = most_losses(N, n, max_risk, error)
                    most = np.array([critical[N] for N in differ])
                    loses = (1 + max_risk / share) / 2
                    rejected = binom.pmf(differ, n, share) @ binom.cdf(
                        most, differ, loses
                    )
                    cell = {"n": n, "share": share, "max_risk": max_risk}
                    found.append(cell | {"error": error, "rejected": float(rejected)})
        sizes = [cell["rejected"] for cell in found if cell["error"] == error]
        print(f"size of the test at {error}: at most {max(sizes):.4f}", flush=True)
    return found


def most_losses(n_differ, n, max_risk, error):
    """Most of `n_differ` rows that may be lost for the test to reject; -1: none."""
    low, high = -1, n_differ + 1
    while high - low > 1:
        lost = (low + high) // 2
        p_value = drop_p_value(
            lost, n_differ - lost, n, max_risk, nuisance_error_of(error)
        )
        low, high = (lost, high) if p_value <= error else (low, lost)
    return low


def coverage_of_bound(n_draws):
    """How often `accuracy_drop_bound` is at least the true drop."""
    found = []
    rng = np.random.default_rng(SEED)
    for level in (0.9, 0.95):
        for n in (1_000, 5_000):
            for share, drop in ((0.03, 0.01), (0.1, 0.01), (0.7, 0.05)):
                covered, bounds = 0, []
                for _ in range(n_draws):
                    shares = [(share + drop) / 2, (share - drop) / 2, 1 - share]
                    lost, gained, _ = rng.multinomial(n, shares)
                    reference, predicted = np.zeros(n, int), np.zeros(n, int)
                    predicted[:lost], reference[lost : lost + gained] = 1, 1
                    bound = accuracy_drop_bound(
                        np.zeros(n, int), reference, predicted, confidence_level=level
                    )
                    covered += bound >= drop
                    bounds.append(bound - (lost - gained) / n)
                cell = {"n": n, "share": share, "drop": drop, "confidence_level": level}
                cell |= {"coverage": covered / n_draws, "slack": float(np.mean(bounds))}
                found.append(cell)
                print("bound", cell, flush=True)
    return found


# -- the monitor -----------------------------------------------------------------------


def monitor(tables, labels, n_streams, n_delays):
    """False alarms on clean streams, and rows until a corruption is noticed."""
    often = np.bincount(tables["validation"].predicted[0], minlength=20)
    order = np.argsort(np.argsort(-often, kind="stable"))
    clean = tables["test"]

    def scores(table, rows):
        bins = confidence_bins(table.confidence[0, rows])
        return bins, order[table.predicted[0, rows]]

    def statistic(table, n_reference, n, rng):
        reference = scores(clean, rng.integers(clean.n_samples, size=n_reference))
        stream = scores(table, rng.integers(table.n_samples, size=n))
        p_values = []
        for known, new, size in zip(reference, stream, (N_BINS, 20), strict=True):
            ranks = ConformalRanks(np.bincount(known, minlength=size))
            p_values.append(ranks.p_values(new, rng.random(n)))
        return ShiryaevRoberts(np.zeros((2, BETS))).update(np.stack(p_values))

    found = {"clean": [], "delays": []}
    rng = np.random.default_rng(SEED)
    for n_reference, level, n in (
        (1_000, 1e4, 1_000),
        (5_000, 1e4, 3_000),
        (5_000, 1e6, 10_000),
    ):
        alarms = np.mean(
            [
                (statistic(clean, n_reference, n, rng) >= level).any()
                for _ in range(n_streams)
            ]
        )
        cell = {"n_reference": n_reference, "level": level, "rows": n}
        cell |= {"false_alarms": float(alarms), "bound": n / level}
        found["clean"].append(cell)
        print("monitor", cell, flush=True)
    for name in tables:
        if name in ("validation", "test"):
            continue
        delays = []
        for _ in range(n_delays):
            noticed = statistic(tables[name], 5_000, 5_000, rng) >= 1e6
            delays.append(noticed.argmax() + 1 if noticed.any() else np.inf)
        accuracy = {
            part: float(np.mean(tables[part].predicted[-1] == labels["test"]))
            for part in ("test", name)
        }
        cell = {
            "corruption": name,
            "median_rows": float(np.median(delays)),
            "ninth_decile": float(np.quantile(delays, 0.9)),
            "last_stage_accuracy": accuracy[name],
            "clean_accuracy": accuracy["test"],
        }
        found["delays"].append(cell)
        print("monitor", cell, flush=True)
    return found


# -- a million rows --------------------------------------------------------------------


def large_table(n=1_000_000, n_classes=1_000, n_branches=3):
    """Answers that get better with depth, and are right as often as they are sure."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(n_classes, size=n)
    table = StageTable.empty(n_branches + 1, n, n_classes)
    for k in range(n_branches + 1):
        sure = rng.beta(2 + k, 1.2, size=n).clip(1 / n_classes, 1)
        right = rng.random(n) < 0.95 * sure
        table.predicted[k] = np.where(right, labels, rng.integers(n_classes, size=n))
        table.confidence[k] = table.gap[k] = sure
    table.entropy[:] = 0
    return table, labels


def large():
    """Processor time and memory for a million rows, a thousand classes, 3 branches."""
    table, labels = large_table()
    fresh, fresh_labels = table, labels
    given = table.confidence.nbytes + labels.nbytes
    costs = np.array([0.2, 0.45, 0.75, 1.05])

    def rule_at(margin):
        rule = SurvivorThresholdCalibrator(margin, margin_mode="local")
        return rule.fit(table, labels)

    start = time.process_time()
    rule_at(0.05)
    thresholds = time.process_time() - start
    tracemalloc.start()
    rule_at(0.05)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start = time.process_time()
    margins = np.linspace(-0.02, 0.3, 12).tolist()
    rules = [rule_at(margin) for margin in margins]
    path = time.process_time() - start
    start = time.process_time()
    answers = PathAnswers.of(rules, fresh)
    following = time.process_time() - start
    start = time.process_time()
    settings = {"risk": "accuracy_drop", "max_risk": 0.01, "error": 0.1}
    certify(answers, margins, fresh_labels, [costs] * len(rules), **settings)
    certifying = time.process_time() - start
    found = {
        "thresholds_seconds": thresholds,
        "thresholds_memory_over_given": peak / given,
        "path_of_12_seconds": path,
        "following_12_rules_seconds": following,
        "certifying_seconds": certifying,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("a million rows", found, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument(
        "--probabilities", default=None, help="default: beside the cache"
    )
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    args = parser.parse_args()
    tables = labels = costs = None
    if ON_PROBABILITIES & set(args.parts):
        cache = Path(args.cache).expanduser()
        path = Path(args.probabilities or cache.parent / f"guarantees_seed{SEED}.npz")
        if not path.exists():
            make_probabilities(str(cache), path)
        tables, labels, costs = read_probabilities(path)
    record = read_json("guarantees")
    record |= {"what": __doc__.splitlines()[0], "environment": environment()}
    record |= {"settings": {"seed": SEED, "draws": args.draws}}
    for part in args.parts:
        start = time.process_time()
        record[part] = PARTS[part](tables, labels, costs, args.draws)
        record[f"{part}_seconds"] = time.process_time() - start
        write_json("guarantees", record)


# The other parts need no data.
ON_PROBABILITIES = {"risk_control", "monitor"}
PARTS = {
    "risk_control": risk_control,
    "size": lambda tables, labels, costs, draws: size_of_test(),
    "coverage": lambda tables, labels, costs, draws: coverage_of_bound(draws),
    "monitor": lambda tables, labels, costs, draws: monitor(
        tables, labels, 2 * draws, 200
    ),
    "large": lambda tables, labels, costs, draws: large(),
}


if __name__ == "__main__":
    main()
