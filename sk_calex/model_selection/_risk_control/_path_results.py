"""What was measured and certified at each point of a path."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.utils._codec import savable

__all__ = ["PathResults"]


@savable
@dataclass(frozen=True, eq=False, repr=False)
class PathResults:
    """Points of a path from strict to lax, the plain last stage first.

    Its `repr` is a table; `to_frame` makes a data frame of it.

    Parameters
    ----------
    margin : ndarray of shape (n_points,)
        Values of the knob, or positions in a path that was given; NaN for the last
        stage alone. Of objects where a point has one margin for each branch.
    n_lost, n_gained, n_disagree : ndarray of int, shape (n_points,)
        Rows that only the last stage gets right, only the cascade, and rows that they
        answer differently. Lost and gained are -1 where there were no labels.
    risk_estimate : ndarray of float64, shape (n_points,)
        The risk on the certifying rows; it bounds nothing.
    p_value : ndarray of float64, shape (n_points,)
        Of the test that the risk exceeds what is allowed.
    certified : ndarray of bool, shape (n_points,)
        Whether the promise holds there: up to the first p-value that is too large.
    flops_reduction : ndarray of float64, shape (n_points,)
        Share of the plain backbone's FLOPs saved on the certifying rows, an estimate.
    depth_share : ndarray of float64, shape (n_points, n_branches + 1)
        Share of the certifying rows answered at each depth.
    """

    margin: NDArray[Any]
    n_lost: NDArray[np.intp]
    n_gained: NDArray[np.intp]
    n_disagree: NDArray[np.intp]
    risk_estimate: NDArray[np.float64]
    p_value: NDArray[np.float64]
    certified: NDArray[np.bool_]
    flops_reduction: NDArray[np.float64]
    depth_share: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.margin)

    def to_frame(self) -> Any:
        """Make a data frame with one row for each point; needs pandas.

        Returns
        -------
        frame : pandas.DataFrame of shape (n_points, 8 + n_branches + 1)
            The fields as columns, ``depth_share_0`` and so on among them.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas: pip install pandas. The same arrays are the "
                "attributes of path_results_."
            ) from error
        columns = {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if part.name != "depth_share"
        }
        for depth, share in enumerate(self.depth_share.T):
            columns[f"depth_share_{depth}"] = share
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        rows = [
            ["margin", "lost", "gained", "differ", "risk", "p", "certified", "saved"]
        ]
        for j, margin in enumerate(self.margin):
            lost, gained = (
                "?" if count < 0 else str(count)
                for count in (self.n_lost[j], self.n_gained[j])
            )
            rows.append(
                [
                    "last stage" if j == 0 else _short(margin),
                    lost,
                    gained,
                    str(self.n_disagree[j]),
                    f"{self.risk_estimate[j]:.4f}",
                    f"{self.p_value[j]:.4f}",
                    "yes" if self.certified[j] else "no",
                    f"{self.flops_reduction[j]:.1%}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_short, value))
    return f"{value:.4g}"
