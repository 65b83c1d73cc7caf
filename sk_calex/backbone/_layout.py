"""The layout of a feature matrix: the columns of each tap and of the outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.utils._codec import savable
from sk_calex.utils._decoded import DecodedFeatures

__all__ = ["FeatureArray", "TapLayout"]


@savable
@dataclass(frozen=True)
class TapLayout:
    """The columns of a feature matrix: one block per tap, then the backbone's outputs.

    Parameters
    ----------
    names : tuple of str
        Taps in depth order.
    shapes : tuple of tuple of int
        Shape of one sample's features at each tap: (C, H, W), (L, D) or (D,), flattened
        in C order into the columns.
    n_outputs : int
        Columns of the last block, the backbone's logits.
    stage_macs : tuple of int, default=None
        Multiply-accumulates of each stage for one sample, counted by torch: one entry
        per tap and one for the rest of the backbone. None where unknown.
    shared : bool, default=False
        Whether taps and outputs are the same columns (plain 2-D data).

    Raises
    ------
    ValueError
        If lengths differ, there is no tap, or a size is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import TapLayout
    >>> layout = TapLayout(("layer1",), ((2, 2, 2),), n_outputs=3)
    >>> layout.width
    11
    >>> layout.block(np.zeros((5, 11)), 0).shape
    (5, 8)
    >>> layout.feature_names()[-2:].tolist()
    ['output[1]', 'output[2]']
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_outputs: int
    stage_macs: tuple[int, ...] | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        sizes = [size for shape in self.shapes for size in shape]
        if not self.names or len(self.names) != len(self.shapes):
            raise ValueError(
                f"names={self.names} and shapes={self.shapes} must have one entry per "
                "tap each, for at least one tap."
            )
        if not all(self.shapes) or min(*sizes, self.n_outputs) < 1:
            raise ValueError(
                f"shapes={self.shapes} and n_outputs={self.n_outputs} must be positive "
                "sizes."
            )
        if self.stage_macs is not None and len(self.stage_macs) != self.n_taps + 1:
            raise ValueError(
                f"stage_macs={self.stage_macs} must have {self.n_taps + 1} entries: "
                "one per tap and one for the rest of the backbone."
            )

    @classmethod
    def identity(cls, n_features: int, n_taps: int = 1) -> TapLayout:
        """Make the layout of plain 2-D data: every stage sees all columns.

        Parameters
        ----------
        n_features : int
            Number of columns.
        n_taps : int, default=1
            Number of branches.

        Returns
        -------
        layout : TapLayout
            Layout whose stages cost nothing, with a tap named "x", or several named
            "branch_1", "branch_2", ...
        """
        names = [f"branch_{k + 1}" for k in range(n_taps)] if n_taps > 1 else ["x"]
        shapes = ((n_features,),) * n_taps
        return cls(tuple(names), shapes, n_features, (0,) * (n_taps + 1), shared=True)

    @classmethod
    def from_feature_names(cls, names: Iterable[Any]) -> TapLayout | None:
        """Read a layout back from `feature_names`.

        Parameters
        ----------
        names : iterable of str
            Column names, as of a data frame.

        Returns
        -------
        layout : TapLayout or None
            The layout, without MACs; None where the names are not a layout's.
        """
        names = [str(name) for name in names]
        last: dict[str, tuple[int, ...]] = {}
        for name in names:
            match = re.fullmatch(r"(.+)\[(\d+(?:,\d+)*)\]", name, re.DOTALL)
            if match is None:
                return None
            last[match[1]] = tuple(int(i) + 1 for i in match[2].split(","))
        if "output" not in last or len(last) < 2:
            return None
        n_outputs = math.prod(last.pop("output"))
        layout = cls(tuple(last), tuple(last.values()), n_outputs)
        # The width first: a crafted name may claim too many columns to write out.
        same = layout.width == len(names) and layout.feature_names().tolist() == names
        return layout if same else None

    @property
    def n_taps(self) -> int:
        """Number of taps K."""
        return len(self.names)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.n_outputs if self.shared else self.columns(self.n_taps).stop

    def columns(self, stage: int) -> slice:
        """Return the columns of a tap, or of the backbone's outputs.

        Parameters
        ----------
        stage : int
            Tap index, or `n_taps` for the outputs.

        Returns
        -------
        columns : slice
            The columns.
        """
        if self.shared:
            return slice(0, self.n_outputs)
        sizes = [*(math.prod(shape) for shape in self.shapes), self.n_outputs]
        start = sum(sizes[:stage])
        return slice(start, start + sizes[stage])

    def block(self, X: Any, stage: int) -> Any:
        """Return the columns of one stage, as a view.

        Parameters
        ----------
        X : ndarray or DecodedFeatures of shape (n_samples, width)
            Feature matrix. Where all stages share the columns, also a sparse matrix or
            a data frame.
        stage : int
            Tap index, or `n_taps` for the outputs.

        Returns
        -------
        block : ndarray or DecodedFeatures of shape (n_samples, size)
            A view of `X`, or `X` itself where all stages share the columns.
        """
        if self.shared:
            return X
        if isinstance(X, DecodedFeatures):
            return X.outputs if stage == self.n_taps else X.select([stage])
        return np.asarray(X)[:, self.columns(stage)]

    def _positions(self, names: Iterable[str]) -> list[int]:
        """Find the indices of taps by their names, in depth order."""
        wanted = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in wanted if name not in self.names]
        if unknown or not wanted or len(set(wanted)) < len(wanted):
            raise ValueError(
                f"names={wanted} must be some of the taps {list(self.names)}, at least "
                "one and each once."
            )
        return sorted(self.names.index(name) for name in wanted)

    def select(self, names: Iterable[str]) -> TapLayout:
        """Select some of the taps: the layout of a backbone that has no others.

        Parameters
        ----------
        names : iterable of str
            Taps to keep, in any order.

        Returns
        -------
        layout : TapLayout
            Their layout, in depth order. A stage between two taps costs what all stages
            between them cost.

        Raises
        ------
        ValueError
            If a name is unknown or given twice, or there is none.

        Examples
        --------
        >>> from sk_calex import TapLayout
        >>> layout = TapLayout(("a", "b"), ((4,), (2,)), 3, stage_macs=(10, 20, 5))
        >>> layout.select(["b"])
        TapLayout(names=('b',), shapes=((2,),), n_outputs=3, stage_macs=(30, 5), ...)
        """
        positions = self._positions(names)
        macs = self.stage_macs
        if macs is not None:
            ends = [*(k + 1 for k in positions), len(macs)]
            starts = [0, *ends[:-1]]
            macs = tuple(sum(macs[a:b]) for a, b in zip(starts, ends, strict=True))
        return TapLayout(
            tuple(self.names[k] for k in positions),
            tuple(self.shapes[k] for k in positions),
            self.n_outputs,
            macs,
            self.shared,
        )

    def select_columns(self, names: Iterable[str]) -> NDArray[np.intp]:
        """Select the columns of some of the taps and of the backbone's outputs.

        Parameters
        ----------
        names : iterable of str
            Taps to keep, in any order.

        Returns
        -------
        columns : ndarray of intp, shape (select(names).width,)
            Indices into the columns of a feature matrix, in ascending order: its part
            ``X[:, columns]`` has the layout ``select(names)``.

        Raises
        ------
        ValueError
            If a name is unknown or given twice, or there is none.

        Examples
        --------
        >>> from sk_calex import TapLayout
        >>> layout = TapLayout(("a", "b"), ((4,), (2,)), n_outputs=3)
        >>> layout.select_columns(["b"])
        array([4, 5, 6, 7, 8])
        """
        positions = self._positions(names)
        if self.shared:
            return np.arange(self.width)
        blocks = [self.columns(stage) for stage in [*positions, self.n_taps]]
        return np.concatenate([np.arange(b.start, b.stop) for b in blocks])

    def feature_names(self) -> NDArray[np.object_]:
        """Name the columns, such as ``layer1[0,3,7]`` and ``output[2]``.

        Returns
        -------
        names : ndarray of object, shape (width,)
            The names.
        """
        blocks = list(zip(self.names, self.shapes, strict=True))
        if self.shared:
            blocks = [("x", (self.n_outputs,))]
        else:
            blocks.append(("output", (self.n_outputs,)))
        names = [
            f"{name}[{','.join(map(str, index))}]"
            for name, shape in blocks
            for index in np.ndindex(shape)
        ]
        return np.asarray(names, dtype=object)


class FeatureArray(np.ndarray):
    """A feature matrix with its `TapLayout`.

    Otherwise an ordinary array. Selecting rows, copying and pickling keep the layout;
    selecting columns drops it, and arithmetic returns plain arrays.
    `FrozenBackbone.transform` returns one, so that a cascade in a pipeline knows which
    columns are which tap.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import FeatureArray, TapLayout
    >>> layout = TapLayout(("tap",), ((3,),), n_outputs=2)
    >>> X = FeatureArray.wrap(np.zeros((4, 5)), layout)
    >>> X[1:3].layout is layout
    True
    >>> X[:, :3].layout is None
    True
    """

    _layout: TapLayout | None = None

    @classmethod
    def wrap(cls, array: NDArray[Any], layout: TapLayout) -> FeatureArray:
        """View an array with its layout, without a copy.

        Parameters
        ----------
        array : ndarray of shape (n_samples, layout.width)
            The matrix.
        layout : TapLayout
            Its layout.

        Returns
        -------
        features : FeatureArray
            A view of `array`.

        Raises
        ------
        ValueError
            If the layout is not that of such a matrix.
        """
        view = np.asarray(array).view(cls)
        view._layout = layout
        if view.layout is None:
            raise ValueError(
                f"the layout has {layout.width} columns, but the array is of shape "
                f"{view.shape}."
            )
        return view

    @property
    def layout(self) -> TapLayout | None:
        """The `TapLayout` of the columns; None where it is not known."""
        # Looked at again here: a transpose gets its shape after __array_finalize__.
        return self._layout if self._fits(self._layout) else None

    def _fits(self, layout: TapLayout | None) -> bool:
        return layout is not None and self.shape[1:] == (layout.width,)

    def __array_finalize__(self, obj: Any) -> None:
        layout = getattr(obj, "_layout", None)
        self._layout = layout if self._fits(layout) else None

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        columns = index[1:] if isinstance(index, tuple) else ()
        if isinstance(part, FeatureArray) and not all(map(_is_all, columns)):
            # They may be as many, in another order.
            part._layout = None
        return part

    def take(
        self,
        indices: Any,
        axis: Any = None,
        out: Any = None,
        mode: Any = "raise",
    ) -> Any:
        """Take elements along an axis, as `numpy.ndarray.take` does.

        Parameters
        ----------
        indices : array-like of int, of any shape
            Which.
        axis : int, default=None
            0 takes rows, 1 columns; None counts through the flattened array.
        out : ndarray of the result's shape, default=None
            Gets the result.
        mode : {"raise", "wrap", "clip"}, default="raise"
            What becomes of indices out of bounds.

        Returns
        -------
        taken : ndarray of shape (n, width), (n_samples, n) or that of `indices`
            Rows keep the layout, columns that are picked do not.
        """
        return self._moved(super().take(indices, axis, out, mode), axis)

    def compress(self, condition: Any, axis: Any = None, out: Any = None) -> Any:
        """Take what a mask says along an axis, as `numpy.ndarray.compress` does.

        Parameters
        ----------
        condition : array-like of bool, shape (n,)
            Which.
        axis : int, default=None
            0 takes rows, 1 columns; None counts through the flattened array.
        out : ndarray of the result's shape, default=None
            Gets the result.

        Returns
        -------
        taken : ndarray of shape (n, width), (n_samples, n) or (n,)
            Rows keep the layout, columns that are picked do not.
        """
        return self._moved(super().compress(condition, axis, out), axis)

    def transpose(self, *axes: Any) -> Any:
        """Transpose as `numpy.ndarray.transpose` does.

        Parameters
        ----------
        *axes : int
            The axes in their new order; reversed by default.

        Returns
        -------
        transposed : ndarray of shape (width, n_samples)
            Without a layout, though it be as wide.
        """
        return self._moved(super().transpose(*axes), 1)

    @property
    def T(self) -> Any:
        """The transpose, without a layout."""
        return self.transpose()

    def _moved(self, part: Any, axis: int | None) -> Any:
        keeps_columns = axis is not None and axis % max(1, self.ndim) == 0
        if isinstance(part, FeatureArray) and not keeps_columns:
            part._layout = None
        return part

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: bool = False
    ) -> Any:
        plain = np.asarray(array)
        return plain if plain.ndim else plain[()]

    def __reduce__(self) -> tuple[Any, ...]:
        # ndarray's own pickling forgets attributes.
        return _rebuild, (np.asarray(self), self.layout)


def _is_all(index: Any) -> bool:
    return index is Ellipsis or (isinstance(index, slice) and index == slice(None))


def _rebuild(array: NDArray[Any], layout: TapLayout | None) -> FeatureArray:
    view = array.view(FeatureArray)
    view._layout = layout
    return view
