"""Draw the pictures of the landing page from the benchmark's record.

    python docs/draw_front.py

Writes ``front-light.svg`` (the curve) and ``exits-light.svg`` (where samples leave) to
``docs/images``, and the same for dark pages, of a few kilobytes each: text stays text,
and the page's colours shine through. Nothing is measured here. A digest of the numbers
stands in the files: the tests compare it with the record.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from _grounds import INK, save, sheet
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "examples" / "benchmarks" / "results" / "cifar100_coarse.json"
FOLDER = ROOT / "docs" / "images"

# One colour a curve, each readable on its ground.
GROUNDS = {
    "light": {"ink": INK["light"], "calexnet": "#3949ab", "reference": "#8a6100"},
    "dark": {"ink": INK["dark"], "calexnet": "#9fa8ff", "reference": "#e0b64a"},
}
CURVES = {
    "calexnet": ("CalexNet", "o", "-"),
    "reference": ("no alignment, no soft targets", "s", "--"),
}
MARGIN = 0.05  # the default, at which the exits are drawn
DROP = 1.0  # points of accuracy; the cheapest margin within them is marked


def digest(record: dict[str, Any]) -> str:
    """Give a digest of the numbers that are drawn."""
    drawn = [record["margins"], *(record["summary"][name] for name in CURVES)]
    drawn += [part.tolist() for part in exits(record)]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def draw(record: dict[str, Any], colors: dict[str, str]) -> Figure:
    """Draw accuracy against FLOPs saved: means over seeds, bands of one deviation."""
    ink = colors["ink"]
    figure, ax = sheet(6.4, 3.6, ink)
    for name, (label, marker, dashes) in CURVES.items():
        found = record["summary"][name]
        saved, right, spread = (
            100 * np.array(values)
            for values in (
                found["flops_reduction"]["mean"],
                found["accuracy"]["mean"],
                found["accuracy"]["sd"],
            )
        )
        look: dict[str, Any] = {"color": colors[name], "marker": marker}
        look |= {"linestyle": dashes, "markersize": 5}
        ax.plot(saved, right, label=label, linewidth=2, **look)
        ax.fill_between(
            saved, right - spread, right + spread, color=colors[name], alpha=0.2, lw=0
        )
    backbone = 100 * record["summary"]["calexnet"]["stage_accuracy"]["mean"][-1]
    ax.axhline(backbone, color=ink, linewidth=1, linestyle=":")
    ax.plot([0], [backbone], "*", color=ink, markersize=13, label="the network itself")
    found = record["summary"]["calexnet"]
    points = 100 * np.array(
        [found["flops_reduction"]["mean"], found["accuracy"]["mean"]]
    )
    point = max(points[:, points[1] >= backbone - DROP].T.tolist())
    ax.annotate(
        f"{point[0]:.0f}% of the FLOPs saved,\n"
        f"{backbone - point[1]:.1f} points of accuracy lost",
        point,
        (point[0] - 34, point[1] - 3.2),
        color=ink,
        arrowprops={"arrowstyle": "->", "color": ink},
    )
    ax.set_xlabel("FLOPs saved (%), heads included", color=ink)
    ax.set_ylabel("Accuracy (%)", color=ink)
    ax.set_xlim(-3, 73)
    ax.legend(frameon=False, labelcolor=ink, loc="lower left")
    return figure


def exits(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Give the share of samples that each depth answers, and its cost in MMACs."""
    i = record["margins"]["calexnet"].index(MARGIN)
    runs = [run for run in record["runs"] if run["method"] == "calexnet"]
    share = np.mean([run["depth_share"][i] for run in runs], axis=0)
    return share.round(4), np.array(runs[0]["depth_mmacs"]).round(2)


def draw_exits(record: dict[str, Any], colors: dict[str, str]) -> str:
    """Draw how samples go through the network, in a stream as wide as they are many."""
    share, cost = exits(record)
    ink, fill = colors["ink"], colors["calexnet"]
    left, step, top, full = 96, 150, 58, 92  # pixels; a full stream is 92 high
    parts, reaching = [], 1.0
    for k, part in enumerate(share):
        x, high, last = left + step * k, full * reaching, k == len(share) - 1
        wide, bottom = full * part, top + high
        # The stream turns down right behind the stage; what stays goes on above.
        turn = x + 110 if not last else x + step
        name = "last stage" if last else f"stage {k + 1}"
        parts += [
            f'<path d="M{x} {top}H{x + step}v{high if last else high - wide:.1f}'
            f'H{turn}V{bottom:.1f}H{x}z" fill="{fill}" opacity=".35"/>',
            f'<rect x="{x + 18}" y="{top - 18}" width="84" height="{full + 36}" rx="6" '
            f'fill="none" stroke="{ink}" stroke-width="1.5"/>',
            f'<text x="{x + 60}" y="{top - 26}" text-anchor="middle">{name}</text>',
        ]
        at, y, who = turn + 58, top + high / 2 - 4, "the end"
        if not last:
            down = 212
            parts.append(
                f'<path d="M{turn} {bottom - wide:.1f}a{wide:.1f} {wide:.1f} 0 0 1 '
                f'{wide:.1f} {wide:.1f}V{down}H{turn}z" fill="{fill}" opacity=".8"/>'
            )
            at, y, who = turn + wide / 2, down + 18, f"branch {k + 1}"
        parts += [
            f'<text x="{at:.0f}" y="{y:.0f}" text-anchor="middle">'
            f'{who}: <tspan font-weight="bold">{part:.0%}</tspan></text>',
            f'<text x="{at:.0f}" y="{y + 16:.0f}" text-anchor="middle">'
            f"{cost[k]:.0f} MMACs each</text>",
        ]
        reaching -= part
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 4 * step + 128} '
        f'250" font-family="DejaVu Sans, sans-serif" font-size="13" fill="{ink}" '
        'role="img" aria-label="Samples pass the stages; most leave at a branch">'
        f"<desc>{RECORD.name}, numbers {digest(record)}</desc>"
        f'<text x="{left - 12}" y="{top + 42}" text-anchor="end">10,000</text>'
        f'<text x="{left - 12}" y="{top + 58}" text-anchor="end">test images</text>'
        f"{''.join(parts)}</svg>\n"
    )


def main(folder: Path = FOLDER) -> None:
    """Write the pictures."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    description = f"{RECORD.name}, numbers {digest(record)}"
    for ground, colors in GROUNDS.items():
        text = draw_exits(record, colors)
        (folder / f"exits-{ground}.svg").write_text(text, encoding="utf-8")
        save(draw(record, colors), folder / f"front-{ground}.svg", description)


if __name__ == "__main__":
    main()
