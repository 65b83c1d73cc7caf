"""Equal content gives equal fingerprints in any process; other content never does."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from collections import OrderedDict

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torchvision.transforms import Compose, v2

from sk_calex.backbone._fingerprint import module_fingerprint
from tests._models import SHAPE, TinyNet, as_stages, tiny_vit

EMPTY = nn.Identity()


def digest(value):
    return module_fingerprint(EMPTY, value=value)


def differ(*values):
    """Whether no two of the values have one fingerprint."""
    return len({digest(value) for value in values}) == len(values)


# Modules

MODULES = {
    "net": TinyNet,
    "stages": lambda: as_stages(TinyNet()),
    "vit": tiny_vit,
    "lstm": lambda: nn.LSTM(2, 3),
    "traced": lambda: fx.symbolic_trace(TinyNet()),
    "bfloat16": lambda: TinyNet().bfloat16(),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "tied": lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2),
}


@pytest.mark.parametrize("name", MODULES)
def test_equal_modules_have_one_fingerprint(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    expected = module_fingerprint(module)
    assert len(expected) == 64
    assert set(expected) <= set("0123456789abcdef")
    assert module_fingerprint(module) == expected
    assert module_fingerprint(copy.deepcopy(module)) == expected
    torch.manual_seed(0)
    assert module_fingerprint(MODULES[name]()) == expected
    if name != "weight norm":  # torch does not pickle these
        assert module_fingerprint(pickle.loads(pickle.dumps(module))) == expected


@pytest.mark.parametrize("name", MODULES)
def test_every_tensor_counts_to_the_last_bit(name):
    module = MODULES[name]()
    seen = {module_fingerprint(module)}
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        last = tensor.detach().view(-1)[-1:]
        last.view(torch.uint8)[0].bitwise_xor_(1)
        seen.add(module_fingerprint(module))
    assert len(seen) == len(tensors) + 1 > 1


@pytest.mark.parametrize("make", [TinyNet, tiny_vit])
def test_running_and_training_change_nothing(make):
    module = make()
    before = module_fingerprint(module)
    module.eval()
    next(module.children()).register_forward_hook(lambda *_: None)
    with torch.inference_mode():
        module(torch.zeros(1, *SHAPE))
    assert module_fingerprint(module) == before
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert module_fingerprint(module) == before


class Scaled(nn.Module):
    """What it multiplies by is neither a parameter nor in its repr."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


def test_attributes_of_modules_count():
    assert differ(Scaled(1.0), Scaled(2.0), Scaled(None))
    assert differ(Scaled(torch.ones(2)), Scaled(torch.zeros(2)))
    assert differ(v2.Lambda(lambda x: x / 2), v2.Lambda(lambda x: x / 3))
    assert differ(nn.Conv2d(1, 1, 3, stride=1).eval(), nn.Identity(), nn.Flatten())
    shared = nn.Conv2d(2, 2, 1)
    strided = copy.deepcopy(shared)
    strided.stride = (2, 2)
    assert differ(shared, strided)


def test_buffers_that_are_not_saved_count():
    def module(value):
        module = nn.Identity()
        module.register_buffer("mean", torch.tensor(value), persistent=False)
        return module

    assert differ(module(1.0), module(2.0))


def test_the_order_of_children_counts():
    a, b = nn.ReLU(), nn.Flatten()
    assert differ(
        nn.Sequential(OrderedDict(a=a, b=b)),
        nn.Sequential(OrderedDict(b=b, a=a)),
        nn.Sequential(a, b),
    )


def test_a_module_that_holds_itself_is_read():
    module = Scaled(1.0)
    module.parents = [module]
    same = Scaled(1.0)
    same.parents = [same]
    assert digest(module) == digest(same)
    assert differ(module, Scaled(1.0))


def class_from(source, **given):
    """A class as it reads after an edit of its file."""
    module = types.ModuleType("edited")
    vars(module).update(given, nn=nn, torch=torch)
    exec(textwrap.dedent(source), vars(module))
    return module


SOURCE = """
SCALE = {constant}
TABLE = torch.tensor([{constant}])

def helper(x):
    return x + {helper}

class Edited(nn.Module):
    offset = {attribute}

    def forward(self, x):
        return self.part(helper(x) * SCALE / TABLE)

    def part(self, x):
        return x {operator} self.offset

    @property
    def size(self):
        return {size}

class Callable:
    def __call__(self, x):
        return x {operator} 2
"""


def edited(constant=1.5, helper=0, attribute=1, operator="+", size=3):
    values = locals()
    return class_from(SOURCE.format(**values))


@pytest.mark.parametrize(
    "change",
    [
        {"constant": 2.5},
        {"helper": 1},
        {"attribute": 2},
        {"operator": "-"},
        {"size": 4},
    ],
    ids=str,
)
def test_the_code_of_a_module_counts(change):
    assert digest(edited().Edited()) == digest(edited().Edited())
    assert differ(edited().Edited(), edited(**change).Edited())


def test_the_code_of_a_callable_object_counts():
    assert digest(edited().Callable()) == digest(edited(helper=1).Callable())
    assert differ(edited().Callable(), edited(operator="-").Callable())


# Functions


def scale_by(factor, base=1.0, *, shift=0.0):
    def scale(x):
        return x.float() / factor + shift

    return scale


def test_functions_count_by_code_closure_and_defaults():
    assert digest(scale_by(2)) == digest(scale_by(2))
    assert differ(scale_by(2), scale_by(3), scale_by(2, shift=1.0))
    assert differ(lambda x: x + 1, lambda x: x - 1, lambda x: x + 2)
    assert differ(lambda x, a=1: x, lambda x, a=2: x, lambda x, *, a=2: x)
    assert differ(lambda a, b: a - b, lambda b, a: a - b)
    assert differ(lambda x: (lambda: 1)(), lambda x: (lambda: 2)())
    assert differ(torch.relu, torch.sigmoid, torch.Tensor.float, np.exp, np.log)
    assert differ(Scaled(1).forward, Scaled(2).forward, Scaled(1).extra_repr)


def test_partial_arguments_count():
    make = functools.partial
    assert digest(make(scale_by, 1, shift=2)) == digest(make(scale_by, 1, shift=2))
    assert differ(make(scale_by, 1), make(scale_by, 2), make(scale_by, 1, shift=2))


def test_functions_that_refer_to_themselves_are_read():
    def countdown(n):
        return n and countdown(n - 1)

    def unset():
        return later

    assert differ(countdown, unset)  # `later` is an empty cell
    later = 1
    assert differ(unset, later)


def test_globals_that_are_not_data_count_by_name():
    reads = "def f(x):\n    return thing"
    assert differ(*(class_from(reads, thing=t).f for t in (1, 2.0, (1,), [1], "a")))
    locks = [class_from(reads, thing=threading.Lock()).f for _ in range(2)]
    assert digest(locks[0]) == digest(locks[1])
    assert differ(
        *(class_from(reads, thing=t).f for t in (torch.relu, nn.ReLU, digest))
    )


# Settings

plain = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", b"a"])
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=6,
)


def canon(value):
    """Content and types: in Python True == 1 and {} orders its keys."""
    if isinstance(value, dict):
        return ("dict", *((k, canon(value[k])) for k in sorted(value)))
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(canon, value))
    return (type(value).__name__, value)


@given(nested, nested)
def test_nested_data_are_equal_just_where_their_content_is(a, b):
    assert (digest(a) == digest(b)) == (canon(a) == canon(b))
    assert digest(a) == digest(copy.deepcopy(a))


def test_structure_is_not_lost_in_a_row():
    assert differ({"a": {}, "b": 1}, {"a": {"b": 1}})
    assert differ([1, [2]], [[1], 2], [1, 2], (1, 2), [[1, 2]])
    assert differ("ab", ["a", "b"], b"ab", ["ab", ""])


def test_arrays_count_by_value_dtype_and_shape():
    x = np.arange(6, dtype=np.float32)
    assert digest(x) == digest(x[::-1].copy()[::-1])
    assert digest(torch.from_numpy(x)) == digest(torch.arange(12.0)[:6].clone())
    assert differ(x, x.reshape(2, 3), x.astype("f8"), torch.from_numpy(x), x + 1)
    assert differ(torch.zeros(0), torch.zeros(0, 1), torch.zeros(0).double())
    assert differ(np.float32(1), np.float64(1), 1.0, np.array(1.0))
    assert digest(np.array([[1, 2]], object)) == digest(np.array([[1, 2]], object))
    assert differ(np.array([1, "a"], object), np.array([1, "b"], object))


def test_objects_count_by_the_state_that_pickling_keeps():
    def transform(mean, order=slice(None)):
        steps = [v2.Resize(8), v2.Normalize(mean, [1.0])]
        return Compose(steps[order])

    assert digest(transform([0.0])) == digest(transform([0.0]))
    assert differ(
        transform([0.0]), transform([0.5]), transform([0.0], slice(None, None, -1))
    )
    assert differ(torch.float32, torch.float16, torch.device("cpu"))
    assert digest({"x", "yy", "z"}) == digest({"z", "yy", "x"})
    assert differ({"x"}, {"y"}, {"x", "y"}, ["x"])
    counts = [OrderedDict(a=1), {"a": 1}, functools.reduce, range(3), range(4)]
    assert differ(*counts[1:])


def test_settings_count_by_name():
    fingerprints = [
        module_fingerprint(EMPTY),
        module_fingerprint(EMPTY, a=1),
        module_fingerprint(EMPTY, b=1),
        module_fingerprint(EMPTY, a=1, b=1),
    ]
    assert len(set(fingerprints)) == 4
    assert module_fingerprint(EMPTY, b=1, a=1) == fingerprints[-1]


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in "a"), sys.stdout])
def test_what_cannot_be_read_is_refused_by_name(value):
    with pytest.raises(
        TypeError, match=r"preprocess cannot be fingerprinted.*cache=No"
    ):
        module_fingerprint(EMPTY, preprocess=Scaled(value))
    with pytest.raises(TypeError, match="module cannot be fingerprinted"):
        module_fingerprint(Scaled(value))


# Other processes

SCRIPT = """
from sk_calex.backbone._fingerprint import module_fingerprint
from tests._models import TinyNet

def preprocess(x, wanted=frozenset(["red", "green", "blue"])):
    return x if x in {"uno", "due", "tre", "quattro"} else x / 255

print(module_fingerprint(TinyNet(), preprocess=preprocess, tags={"a", "b", "c"}))
"""


def test_another_process_gets_the_same(capsys):
    run = [sys.executable, "-c", SCRIPT]
    other = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    exec(SCRIPT, {"__name__": "__main__"})
    # Strings, and so sets, have another order there.
    assert capsys.readouterr().out == other


def test_loading_gives_the_same(tmp_path):
    net = TinyNet()
    joblib.dump(net, tmp_path / "net")
    assert module_fingerprint(joblib.load(tmp_path / "net")) == module_fingerprint(net)
