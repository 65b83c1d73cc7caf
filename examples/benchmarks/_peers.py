"""What the peers of `compare_peers.py` share: rows, pooled features, costs, tables."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from _fronts import front


@dataclass(frozen=True)
class Part:
    """Rows of one part: images, cached features, those pooled, labels."""

    images: Any
    features: Any
    pooled: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Data:
    """The same rows for everyone; `fit` are those that the backbone was trained on."""

    fit: Part
    validation: Part
    test: Part
    everything: tuple[Any, np.ndarray]  # features, labels: `split` parts them
    validation_rows: np.ndarray
    split: Any
    columns: list[slice]  # of `pooled`: each tap, then the backbone's logits
    stage_macs: np.ndarray

    @property
    def plain(self) -> float:
        """MACs of the backbone alone."""
        return float(self.stage_macs.sum())

    @property
    def backbone_accuracy(self) -> float:
        """On the test rows."""
        logits = self.test.pooled[:, self.columns[-1]]
        return float((logits.argmax(axis=1) == self.test.target).mean())


def pooled(features: Any, layout: Any, rows: int = 4096) -> np.ndarray:
    """Global average of each tap's channels, then the logits, float32."""
    out = []
    for start in range(0, len(features), rows):
        part = np.asarray(features[start : start + rows])
        means = [
            layout.block(part, k).reshape(len(part), *shape).mean(axis=(2, 3))
            for k, shape in enumerate(layout.shapes)
        ]
        out.append(np.hstack([*means, layout.block(part, layout.n_taps)]))
    return np.concatenate(out).astype(np.float32)


def pooled_columns(layout: Any) -> list[slice]:
    """Where each tap and the logits stand in the matrix of `pooled`."""
    widths = [shape[0] for shape in layout.shapes] + [layout.n_outputs]
    ends = np.cumsum(widths)
    return [slice(int(e - w), int(e)) for e, w in zip(ends, widths, strict=True)]


def costs_of(stage_macs: Any, head_macs: Any, enabled: Any = None) -> np.ndarray:
    """MACs of an answer at each depth; a head that is switched off is not evaluated."""
    heads = np.asarray(head_macs, dtype=float)
    if enabled is not None:
        heads = heads * np.asarray(enabled)
    return np.cumsum(stage_macs) + np.cumsum(np.append(heads, 0.0))


def softmax(logits: Any) -> np.ndarray:
    """Of each row, in float64."""
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def stopped_after(leads: np.ndarray, frequency: int, margin: float) -> np.ndarray:
    """Boosting rounds that each row needs under LightGBM's prediction early stop.

    `leads`: best raw score less the second best after 1, 2, ... rounds, shape (rounds,
    n). It is looked at after every `frequency` rounds; the first that is above `margin`
    ends the row.
    """
    rounds = len(leads)
    looked = np.arange(frequency, rounds + 1, frequency)
    if len(looked) == 0:
        return np.full(leads.shape[1], rounds)
    ends = leads[looked - 1] > margin
    return np.where(ends.any(axis=0), looked[ends.argmax(axis=0)], rounds)


class Clock:
    """Seconds that the block took, wall and this process's CPU."""

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, cpu = self._start
        self.seconds = {
            "fit_seconds": time.perf_counter() - wall,
            "fit_cpu_seconds": time.process_time() - cpu,
        }


def accuracy_at(runs: list[dict[str, Any]], reduction: float) -> float:
    """Accuracy of a method where it saves as much; NaN beyond its cheapest point."""
    saved, accuracy = front(runs)
    kept = saved > 0
    return float(
        np.interp(
            reduction,
            np.r_[0.0, saved[kept]],
            np.r_[runs[0]["backbone_accuracy"], accuracy[kept]],
            right=np.nan,
        )
    )


def points_table(runs: list[dict[str, Any]]) -> str:
    """The operating points that each peer gives when asked, on test, in Markdown.

    Means over seeds. Left out where no seed has any.
    """
    columns = ("accuracy", "points lost", "FLOPs saved", "by its own count")
    lines = [f"| peer | asked for | {' | '.join(columns)} |", "|---" * 6 + "|"]
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for run in runs:
        for point in run.get("points", []):
            lost = run["backbone_accuracy"] - point["accuracy"]
            row = [point["accuracy"], lost, point["flops_reduction"]]
            group = groups.setdefault((run["method"], point["asked"]), [])
            group.append([*row, point["own_count"]])
    for names, rows in groups.items():
        accuracy, lost, saved, own = 100 * np.mean(rows, axis=0)
        cells = [*names, f"{accuracy:.2f}", f"{lost:.2f}"]
        cells += [f"{saved:.1f} %", f"{own:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def static_table(static: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """Each static network beside what the cascades have where they save as much."""
    names = list(dict.fromkeys(run["method"] for run in runs))
    head = ["network", "MMACs", "FLOPs saved", "accuracy", *names]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for net in static:
        saved = net["flops_reduction"]
        cells = [net["arch"], f"{net['mmacs']:.1f}", f"{100 * saved:.1f} %"]
        cells.append(f"{100 * net['test']:.2f}")
        for name in names:
            mine = [run for run in runs if run["method"] == name]
            seeds = {run["seed"] for run in mine}
            by_seed = [[run for run in mine if run["seed"] == s] for s in seeds]
            mean = np.mean([accuracy_at(some, saved) for some in by_seed])
            cells.append("-" if np.isnan(mean) else f"{100 * mean:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stacked_table(stack: dict[str, Any]) -> str:
    """A cascade on a smaller network, on test, in Markdown."""
    columns = ("accuracy", "saved over the large network", "saved over the small one")
    lines = [
        f"| margin on {stack['arch']} | {' | '.join(columns)} |",
        "|---" * 4 + "|",
    ]
    test = stack["test"]
    for margin, accuracy, saved, itself in zip(
        stack["margins"],
        test["accuracy"],
        test["flops_reduction"],
        test["over_itself"],
        strict=True,
    ):
        lines.append(
            f"| {margin:+.2f} | {100 * accuracy:.2f} | {100 * saved:.1f} % "
            f"| {100 * itself:.1f} % |"
        )
    return "\n".join(lines)


def lightgbm_table(result: dict[str, Any]) -> str:
    """Early stop among the trees, on test, in Markdown."""
    off = result["settings"]["off"]
    rows = {(r["frequency"], r["margin"]): r["test"] for r in result["grid"]}
    lines = [
        "| prediction early stop | accuracy | trees saved | CPU time of predict | "
        "backbone MACs saved |",
        "|---|---|---|---|---|",
        f"| off | {100 * off['accuracy']:.2f} | 0 % | 1 | 0 % |",
    ]
    for name in ("default", "best"):
        told = result["settings"][name]
        frequency = told["kwargs"].get("pred_early_stop_freq", 10)
        margin = told["kwargs"].get("pred_early_stop_margin", 10.0)
        time = told["predict_cpu_seconds"] / off["predict_cpu_seconds"]
        saved = rows[frequency, margin]["trees_saved"]
        lines.append(
            f"| {name} (every {frequency} rounds, margin {margin:g}) "
            f"| {100 * told['accuracy']:.2f} | {100 * saved:.1f} % | {time:.2f} | 0 % |"
        )
    return "\n".join(lines)
