"""Values in plain form: the same value comes back, or none."""

import math
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

import sk_calex
from sk_calex.utils._codec import CannotSaveError, Decoder, Encoder, savable

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int8, np.uint64, np.bool_]),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    st.lists(st.text()).map(lambda words: np.array(words, dtype=object)),
    st.lists(st.text()).map(lambda words: np.array(words, dtype=np.str_)),
    st.sampled_from(
        [np.float32(0.1), np.int64(-3), torch.float16, torch.device("cpu")]
    ),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text(), inner),
        st.dictionaries(st.integers(), inner),
        st.sets(st.integers()),
        st.frozensets(st.text()),
    ),
)


def there_and_back(value):
    encoder = Encoder()
    plain = encoder.encode(value, "value")
    return Decoder(encoder.tensors, encoder.blobs).decode(plain)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype == object:
            return b.dtype == object and a.tolist() == b.tolist()
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


@given(values)
def test_value_comes_back_as_it_was(value):
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("dtype", ["U2", "U1024"])
@pytest.mark.parametrize("items", [["0"], ["ab", ""], [[]]])
def test_arrays_of_strings_keep_their_width(dtype, items):
    array = np.array(items, dtype)
    assert same(there_and_back(array), array)
    wide = there_and_back(np.array(items, "U5000"))
    assert wide.tolist() == array.tolist()


@pytest.mark.parametrize("width", [-1, 1, 2_000, 10**12, "many"])
def test_a_forged_width_of_strings_is_refused(width):
    encoder = Encoder()
    content = encoder.encode(np.array(["ab", "c"]), "strings")
    content["width"] = width
    with pytest.raises(ValueError, match=r"width of|invalid literal"):
        Decoder(encoder.tensors, encoder.blobs).decode(content)


def test_strings_of_early_archives_have_no_width():
    encoder = Encoder()
    content = encoder.encode(np.array(["ab", "c"], "U9"), "strings")
    del content["width"]
    found = Decoder(encoder.tensors, encoder.blobs).decode(content)
    assert same(found, np.array(["ab", "c"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool])
def test_tensor_comes_back_as_it_was(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype).T
    found = there_and_back(tensor)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_object_comes_back_by_name_and_state():
    @savable
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    found = there_and_back([Pair(1, np.arange(3))])[0]
    assert type(found) is Pair
    assert found.a == 1
    np.testing.assert_array_equal(found.b, [0, 1, 2])


@pytest.mark.parametrize(
    "value",
    [
        lambda x: x,
        SimpleNamespace(a=1),
        np.array([1 + 2j]),
        np.array([object()]),
        FrozenEstimator(object()),
        np.array(["2020-01-01"], dtype="M8[D]"),
        OrderedDict(a=1),
        torch.Size([1, 2]),
        1j,
    ],
)
def test_value_without_a_plain_form_is_refused_by_name(value):
    with pytest.raises(CannotSaveError, match=r"root\.here"):
        Encoder().encode({"here": value}, "root")


def test_value_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(CannotSaveError, match="nested too deeply"):
        Encoder().encode(value, "root")


def test_class_of_the_same_name_is_refused():
    """The name alone does not make it ours."""
    impostor = type("StageTable", (), {})
    with pytest.raises(CannotSaveError, match="StageTable"):
        Encoder().encode(impostor(), "root")


def test_estimator_of_scikit_learn_comes_back_by_skops():
    pytest.importorskip("skops", reason="skops is not installed: see the extra 'save'")
    fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    found = there_and_back({"branch": fitted})["branch"]
    np.testing.assert_array_equal(found.coef_, fitted.coef_)


def test_missing_skops_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"LogisticRegression.*sk-calex\[save\]"):
        Encoder().encode(LogisticRegression(), "root")


@pytest.mark.parametrize(
    "plain",
    [
        {"~": "pickle"},
        {"~": "__init__"},
        {"~": "object", "class": "Popen", "state": {}},
        {"~": "object", "class": "os", "state": {}},
        {"~": "float", "value": "1e999; import os"},
        {"~": "tensor", "name": "nowhere"},
        {"~": "array", "dtype": "object", "shape": [1], "name": "t"},
        {"~": "array", "dtype": "float64", "shape": [7], "name": "t"},
        {"~": "array", "dtype": "uint8", "shape": [1], "name": "f"},
        {"~": "dtype", "value": "load"},
        {"~": "skops", "file": "nowhere"},
    ],
)
def test_crafted_content_is_refused(plain):
    tensors = {"t": torch.zeros(8, dtype=torch.uint8), "f": torch.zeros(1)}
    with pytest.raises((ValueError, KeyError)):
        Decoder(tensors, {}).decode(plain)


def test_deep_content_is_refused():
    plain = value = []
    for _ in range(200):
        value.append([])
        value = value[0]
    with pytest.raises(ValueError, match="nested too deeply"):
        Decoder({}, {}).decode(plain)


def test_every_class_is_known_where_nothing_else_was_imported():
    """A process that only loads has imported no folder by itself."""
    package = Path(sk_calex.__file__).parent
    marked = re.compile(r"^@savable\n(?:@.*\n)*class (\w+)", re.M)
    names = [
        name
        for path in package.rglob("*.py")
        for name in marked.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(names) > 20
    code = (
        "from sk_calex.utils._codec import _class_named\n"
        f"assert None not in map(_class_named, {names})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
