"""What the manifest of an exported cascade says, checked entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.cascade._onnx._numeric_rule import NumericRule
from sk_calex.cascade._onnx._plain import (
    field,
    index_list,
    integer,
    name_list,
    number_array,
)

__all__ = [
    "FORMAT",
    "KIND",
    "MEMORY",
    "SCHEMA",
    "InputSpec",
    "Manifest",
    "StageSpec",
    "classes_to_json",
    "stage_file",
]

FORMAT = "sk_calex.onnx"
KIND = "OnnxCascade"
#: Raised when a folder could no longer be read by the code before.
SCHEMA = 1
#: How the name of what a branch passes on to the next one ends.
MEMORY = ".memory"

_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64")
_FLOATS = ("float16", "float32", "float64")
_MAX_STAGES, _MAX_CLASSES, _MAX_SIZE = 1000, 10**6, 2**31
_LABELS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
}


def stage_file(stage: int) -> str:
    """Return the name of a stage's graph."""
    return f"stage_{stage}.onnx"


@dataclass(frozen=True)
class InputSpec:
    """One array of the samples.

    Parameters
    ----------
    name : str
        Its key in X, or "X" where X is one array; the graph's input has this name.
    dtype : str
        Of the graph's input.
    shape : tuple of int
        Of one sample.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_json(cls, record: Any) -> InputSpec:
        """Read it from the manifest."""
        (name,) = name_list([field(record, "name")], "inputs")
        dtype, shape = field(record, "dtype"), field(record, "shape")
        if dtype not in (*_DTYPES, *_FLOATS):
            raise ValueError(f"inputs: dtype {dtype!r:.50} of the manifest is unknown.")
        if not isinstance(shape, list) or len(shape) > 10:
            raise ValueError("inputs: a shape of the manifest is none.")
        sizes = [integer(n, "inputs: shape", 1, _MAX_SIZE) for n in shape]
        return cls(name, dtype, tuple(sizes))

    def to_json(self) -> dict[str, Any]:
        """Write it for the manifest."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class StageSpec:
    """What a stage's graph takes and gives, by the names of its values.

    Parameters
    ----------
    inputs : tuple of str
        Arrays of the samples, or outputs of earlier stages.
    outputs : tuple of str
        "logits", "gate" where the method has one, then values for later stages.
    classes : ndarray of intp, shape (n_logits,), or None
        Class of each logit; those that are not among them have probability 0. None:
        the classes in their order.
    columns : ndarray of intp, shape (n_classes,), or None
        Logit of each class, where there are others, too.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    classes: NDArray[np.intp] | None = None
    columns: NDArray[np.intp] | None = None

    @classmethod
    def from_json(cls, record: Any, n_classes: int) -> StageSpec:
        """Read it from the manifest."""
        inputs = name_list(field(record, "inputs"), "stages: inputs")
        outputs = name_list(field(record, "outputs"), "stages: outputs")
        if "logits" not in outputs:
            raise ValueError("stages: a stage of the manifest gives no logits.")
        given: dict[str, Any] = {"classes": None, "columns": None}
        limits = {"classes": n_classes, "columns": _MAX_CLASSES}
        for name, below in limits.items():
            value = field(record, name)
            if value is None:
                continue
            every = name == "columns" or not isinstance(value, list)
            length = n_classes if every else len(value)
            given[name] = index_list(value, f"stages: {name}", length, below)
        return cls(inputs, outputs, **given)

    @property
    def without_head(self) -> tuple[str, ...]:
        """Outputs that do not come from what answers here: values for later stages."""
        of_head = ("logits", "gate")
        made = (name for name in self.outputs if name not in of_head)
        return tuple(name for name in made if not name.endswith(MEMORY))

    def to_json(self) -> dict[str, Any]:
        """Write it for the manifest."""

        def plain(indices: NDArray[np.intp] | None) -> list[int] | None:
            return None if indices is None else indices.tolist()

        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "classes": plain(self.classes),
            "columns": plain(self.columns),
        }

    def spread(self, proba: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
        """Return the probabilities of all classes, in their order."""
        if self.columns is not None:
            return proba[:, self.columns]
        if self.classes is None:
            return proba
        full = np.zeros((len(proba), n_classes))
        full[:, self.classes] = proba
        return full


@dataclass(frozen=True)
class Manifest:
    """All that an exported cascade is but its graphs.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Labels.
    named : bool
        Whether X is a mapping from the names of the inputs to arrays.
    inputs : tuple of InputSpec
        What X holds.
    stages : tuple of StageSpec
        Branches in cascade order, and the last stage.
    rule : NumericRule
        When a sample exits.
    exponents : ndarray of float64, shape (n_stages, n_stages), or None
        As of `Ensembles`.
    running_heads : ndarray of bool, shape (n_stages - 1,)
        Which branches have to answer for the rule to decide.
    depth_costs : ndarray of float64, shape (n_stages,), or None
        Cost of an answer at each depth; None where it is not known.
    quantized : str or None
        "int8" where the graphs compute with integers.
    """

    classes: NDArray[Any]
    named: bool
    inputs: tuple[InputSpec, ...]
    stages: tuple[StageSpec, ...]
    rule: NumericRule
    running_heads: NDArray[np.bool_]
    exponents: NDArray[np.float64] | None
    depth_costs: NDArray[np.float64] | None
    quantized: str | None

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Read it, and check that its parts fit each other."""
        classes = _classes_from_json(field(content, "classes"))
        inputs, stages = field(content, "inputs"), field(content, "stages")
        if not isinstance(inputs, list) or not 1 <= len(inputs) <= _MAX_STAGES:
            raise ValueError("the manifest lists no inputs.")
        if not isinstance(stages, list) or not 2 <= len(stages) <= _MAX_STAGES:
            raise ValueError("the manifest lists fewer than two stages, or too many.")
        n = len(stages)
        exponents, costs = field(content, "exponents"), field(content, "depth_costs")
        named, quantized = field(content, "named"), field(content, "quantized")
        if type(named) is not bool or quantized not in (None, "int8"):
            raise ValueError("the manifest is of a kind that is not known.")
        made = cls(
            classes,
            named,
            tuple(map(InputSpec.from_json, inputs)),
            tuple(StageSpec.from_json(stage, len(classes)) for stage in stages),
            NumericRule.from_json(field(content, "rule"), n - 1, len(classes)),
            _heads_from_json(content, n - 1),
            None if exponents is None else number_array(exponents, "exponents", (n, n)),
            None if costs is None else number_array(costs, "depth_costs", (n,)),
            quantized,
        )
        made._check_flow()
        return made

    def _check_flow(self) -> None:
        """Check that each stage finds its inputs, and each rule its signal."""
        known = list(name_list([spec.name for spec in self.inputs], "inputs"))
        if not self.named and len(known) != 1:
            raise ValueError("the manifest names several inputs of one array.")
        for spec, runs in zip(self.stages, [*self.running_heads, True], strict=True):
            missing = set(spec.inputs) - set(known)
            if not runs:  # what its head takes may be left out
                missing = {name for name in missing if not name.endswith(MEMORY)}
            if missing:
                raise ValueError(f"stages: nothing gives {sorted(missing)!r:.200}.")
            made = [name for name in spec.outputs if name not in ("logits", "gate")]
            made = made if runs else list(spec.without_head)
            known = list(name_list([*known, *made], "stages: outputs"))
        if self.exponents is not None and not self.running_heads.all():
            raise ValueError("running_heads: an ensemble takes all branches.")
        branches = self.stages[:-1]
        if self.rule.score == "gate" and not all("gate" in b.outputs for b in branches):
            raise ValueError("rule: a branch of the manifest gives no gate.")

    def last_uses(self) -> list[frozenset[str]]:
        """Return which values are not needed any more after each stage."""
        after, gone = set(chain(*(s.inputs for s in self.stages))), []
        for k, spec in enumerate(self.stages):
            later = set(chain(*(s.inputs for s in self.stages[k + 1 :])))
            after |= set(spec.outputs)
            gone.append(frozenset(after - later))
            after &= later
        return gone


def _heads_from_json(content: Any, n_branches: int) -> NDArray[np.bool_]:
    if "running_heads" not in content:  # written before heads could rest
        return np.ones(n_branches, dtype=bool)
    heads = content["running_heads"]
    fits = isinstance(heads, list) and len(heads) == n_branches
    if not fits or any(type(runs) is not bool for runs in heads):
        raise ValueError(f"running_heads: the manifest needs {n_branches} booleans.")
    return np.array(heads, dtype=bool)


def _classes_from_json(record: Any) -> NDArray[Any]:
    kind, values = field(record, "kind"), field(record, "values")
    known = isinstance(kind, str) and kind in _LABELS
    if not (known and isinstance(values, list)):
        raise ValueError("classes: the manifest lists no labels.")
    if not 2 <= len(values) <= _MAX_CLASSES:
        raise ValueError("classes: the manifest lists fewer than two, or too many.")
    for value in values:
        if type(value) not in _LABELS[kind]:
            raise ValueError(f"classes: {value!r:.50} is no label of kind {kind!r}.")
    try:
        classes = np.array(values, dtype={"int": np.int64, "str": np.str_}.get(kind))
    except OverflowError as error:
        raise ValueError("classes: a label does not fit into 64 bits.") from error
    if len(set(values)) < len(values) or classes.ndim != 1:
        raise ValueError("classes: the manifest repeats a label.")
    return classes


def classes_to_json(classes: NDArray[Any]) -> dict[str, Any]:
    """Write labels for the manifest."""
    values = classes.tolist()
    for kind, types in _LABELS.items():
        if all(type(value) in types for value in values):
            return {"kind": kind, "values": values}
    raise TypeError(
        f"the classes {values[:3]} cannot be exported: labels are strings, integers, "
        "booleans or floats, all of one type."
    )
