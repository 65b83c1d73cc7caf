"""Equal content gives equal fingerprints in any process; other content never does.

Where content cannot be seen, a miss is right and a stale row is not.
"""

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

from sk_calex.backbone import _fingerprint, _installed
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


def torch_pickles(traced):
    """Whether this version of torch pickles traced modules: 2.6 fails on some."""
    try:
        pickle.dumps(traced)
    except AttributeError:
        return False
    return True


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
    if name == "weight norm" or (name == "traced" and not torch_pickles(module)):
        return
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
    with torch.inference_mode():
        module(torch.zeros(1, *SHAPE))
    assert module_fingerprint(module) == before
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert module_fingerprint(module) == before


def test_hooks_that_change_what_forward_gives_count():
    module = TinyNet()
    seen = {module_fingerprint(module)}
    first = next(module.children())
    handle = first.register_forward_hook(lambda _, args, output: output * 2)
    seen.add(module_fingerprint(module))
    handle.remove()
    first.register_forward_hook(lambda _, args, output: output * 3)
    seen.add(module_fingerprint(module))
    first.register_forward_pre_hook(lambda _, args: args)
    assert len(seen | {module_fingerprint(module)}) == 4


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


READS = "def f(x):\n    return thing"


def test_globals_of_every_kind_count():
    reads = READS
    assert differ(*(class_from(reads, thing=t).f for t in (1, 2.0, (1,), [1], "a")))
    locks = [class_from(reads, thing=threading.Lock()).f for _ in range(2)]
    assert digest(locks[0]) == digest(locks[1])  # they hold no data
    assert differ(
        *(class_from(reads, thing=t).f for t in (torch.relu, nn.ReLU, digest))
    )


def test_globals_that_cannot_be_read_are_found_again_by_their_process_alone():
    unreadable = [(i for i in "a"), (i for i in "a"), sys.stdout]
    functions = [class_from(READS, thing=thing).f for thing in unreadable]
    again = [class_from(READS, thing=thing).f for thing in unreadable]
    assert differ(*functions)
    assert [digest(f) for f in functions] == [digest(f) for f in again]
    tokens = _fingerprint._tokens.copy()
    before = [digest(f) for f in functions]
    _fingerprint._tokens.clear()  # as in another process
    assert not {*before} & {digest(f) for f in functions}
    _fingerprint._tokens.update(tokens)


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


@pytest.mark.parametrize("value", [(i for i in "a"), sys.stdout])
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


def test_what_torch_does_to_its_own_classes_counts_not(monkeypatch):
    """torch.compile replaces methods of nn.Module in the process that calls it."""
    fingerprint = module_fingerprint(TinyNet())

    def patched(module, state):
        raise AssertionError("not called")

    monkeypatch.setattr(nn.Module, "__setstate__", patched)
    assert module_fingerprint(TinyNet()) != fingerprint  # a function of this file
    globals_of_torch = {"__name__": "torch._dynamo.mutation_guard"}
    theirs = types.FunctionType(patched.__code__, globals_of_torch)
    monkeypatch.setattr(nn.Module, "__setstate__", theirs)
    assert module_fingerprint(TinyNet()) == fingerprint


def test_loading_gives_the_same(tmp_path):
    net = TinyNet()
    joblib.dump(net, tmp_path / "net")
    assert module_fingerprint(joblib.load(tmp_path / "net")) == module_fingerprint(net)


# What code reads, keeps and changes besides itself

DATA = """
import functools
import threading

from torchvision.transforms import v2

NORM = {thing}

@functools.lru_cache
def table(n):
    return n * {number}

class Pre:
    mean = {data}
    {dunder} = lambda self, i: {number}

    @functools.cached_property
    def later(self):
        return {number}

    @staticmethod
    def alone(x):
        return x + {number}

    def __call__(self, x):
        return NORM(x) - self.mean[0] + table(2)

def pre(x):
    return NORM(x) + table(3)

def told(x):
    return x
told.scale = {data}
"""


def made(thing="None", number=1, data="[0.5]", dunder="__getitem__"):
    return class_from(DATA.format(**locals()))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"data": "[0.1]"}, ["Pre", "told"]),
        ({"data": "{'a': 1}"}, ["Pre", "told"]),
        ({"data": "torch.tensor([0.5])"}, ["Pre", "told"]),
        ({"number": 2}, ["Pre", "pre"]),
        ({"dunder": "__getattr__"}, ["Pre"]),
        ({"thing": "nn.LayerNorm(2, eps=0.1)"}, ["Pre", "pre"]),
        ({"thing": "functools.partial(torch.mul, 2)"}, ["Pre", "pre"]),
        ({"thing": "torch.float16"}, ["Pre", "pre"]),
        ({"thing": "{'mean': 0.5}"}, ["Pre", "pre"]),
    ],
    ids=str,
)
def test_data_beside_the_code_count(change, parts):
    before, same, after = made(), made(), made(**change)
    for part in parts:
        values = [
            value() if isinstance(value := getattr(module, part), type) else value
            for module in (before, same, after)
        ]
        assert digest(values[0]) == digest(values[1])
        assert differ(values[0], values[2])


def test_of_members_in_dunders_those_of_the_user_count():
    source = """
class C:
    '''{words}'''
    __array_priority__ = {number}
    size: {words}

    def __init__(self):
        self.given = {value}
"""
    first, *others = (
        class_from(source.format(words=words, number=number, value=value)).C()
        for words, number, value in [
            ("int", 1, "2"),
            ("str", 1, "1 + 1"),
            ("int", 3, "2"),
            ("int", 1, "4"),
        ]
    )
    assert digest(first) == digest(others[0])
    assert differ(first, *others[1:])


def test_parameters_of_a_global_module_count():
    one, two = (made(f"v2.Normalize([{mean}], [1.0])") for mean in (0.1, 0.2))
    assert differ(one.pre, two.pre)


def test_a_lock_among_the_attributes_of_a_class_counts_by_name():
    one, two = (made(data="[threading.Lock()]").Pre() for _ in range(2))
    assert digest(one) == digest(two)


class Keeps(nn.Module):
    """Keeps what it has computed, as models do that show their attention."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        self.kept = kept = self.layer(x)
        return kept


def test_activations_kept_on_a_module_give_a_miss():
    module = Keeps()
    before = module_fingerprint(module)
    module(torch.ones(1, 3))
    assert module_fingerprint(module) != before
    del module.kept
    assert module_fingerprint(module) == before


class Centred(nn.Module):
    """Subtracts what it has learned, in a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(2)

    def fit(self, x):
        self.mean = x.mean(0)

    def forward(self, x):
        self.mean = self.mean + 0
        return x - self.mean


def test_tensors_that_forward_reads_count():
    with torch.inference_mode():
        one, two = Centred(), Centred()
        one.fit(torch.ones(3, 2))
        two.fit(torch.full((3, 2), 2.0))
    assert differ(one, two)


MEMO = """
import functools, os, random, threading
from os import environ

memo, log, rng, own_rng = {}, [], np.random.default_rng(), random.Random()

def held(function):
    lock = threading.Lock()
    @functools.wraps(function)
    def inner(*args):
        with lock:
            return function(*args)
    return inner

class Step:
    seen = {}

    def __init__(self, power=1):
        self.power = power

    @held
    def __getitem__(self, i):
        return i

    @functools.singledispatchmethod
    def scaled(self, x):
        return x

    def __call__(self, x):
        memo[tuple(x.shape), self.power] = x
        log.append(len(memo))
        self.seen[x.shape] = environ.get("HOME")
        return self.scaled(x) + rng.random() + own_rng.random()

made = {}
exec("def free(x):\\n    return x", made)
made["free"].__module__ = None

class Borrowed:
    free = made["free"]
"""


def test_generators_count_by_class_and_memos_by_content():
    one, two = (class_from(MEMO, np=np) for _ in range(2))
    step, other = one.Step(), two.Step()
    expected = digest(step)
    assert digest(other) == expected  # though its generators were seeded otherwise
    step.__reduce_ex__(2)  # as pickling does: it notes something on the class
    assert digest(step) == expected
    assert differ(step, one.Step(power=2))
    step(np.ones(3))
    assert differ(step, other)  # a miss: what is in the memo might decide
    assert digest(one.Borrowed()) == digest(two.Borrowed())


def test_functions_registered_by_type_count():
    source = """
import functools
@functools.singledispatch
def f(x): return x
@f.register
def _(x: int): return x + {number}
class C:
    @functools.singledispatchmethod
    def f(self, x): return x
    @f.register
    def _(self, x: int): return x + {number}
"""
    one, same, other = (class_from(source.format(number=n)) for n in (1, 1, 2))
    assert digest(one.f) == digest(same.f)
    assert differ(one.f, other.f)
    assert digest(one.C) == digest(same.C)
    assert differ(one.C, other.C)


def test_code_of_other_files_of_the_user_counts(monkeypatch):
    users = [class_from(HELPERS.format(number=n)) for n in (1, 2)]
    for source in (
        "def f(x):\n    return helpers.add(x)",
        "def f(x):\n    return x * helpers.SCALE",
        "def f(x):\n    import helpers\n    return x * helpers.SCALE",
    ):
        digests = []
        for helpers in users:
            helpers.__name__ = "helpers"
            monkeypatch.setitem(sys.modules, "helpers", helpers)
            digests.append(digest(class_from(source, helpers=helpers).f))
        assert len(set(digests)) == 2
    added = [class_from(READS, thing=helpers.add).f for helpers in users]
    assert differ(*added)


HELPERS = """
SCALE = {number}
def add(x):
    return x + {number}
"""


def test_a_method_put_on_an_installed_class_counts(monkeypatch):
    seen = {digest(v2.Normalize([0.0], [1.0])), digest(nn.ReLU())}
    for cls in (v2.Normalize, nn.ReLU):
        for number in (1, 2):
            patch = class_from(f"def forward(self, x):\n    return x + {number}")
            monkeypatch.setattr(cls, "forward", patch.forward)
            made = cls([0.0], [1.0]) if cls is v2.Normalize else cls()
            seen.add(digest(made))
    assert len(seen) == 6


def test_installed_packages_count_by_the_hashes_of_their_files(monkeypatch):
    recorded = _installed._recorded
    assert recorded("torchvision") == recorded.__wrapped__("torchvision")
    assert len({recorded(name) for name in ("torchvision", "PIL", "sklearn")}) == 3
    assert recorded("tests") is recorded("no_such_package") is None
    before = digest(v2.ToImage())
    monkeypatch.setattr(_installed, "_recorded", lambda package: "another version")
    assert digest(v2.ToImage()) != before


def test_keys_of_any_kind_are_in_one_order_in_any_process():
    class Key:
        def __init__(self, name):
            self.name = name

    def table(*names):
        return {Key(name): name for name in names}

    assert digest(table("a", "b", "c")) == digest(table("c", "a", "b"))
    assert digest({Key("a"), Key("b")}) == digest({Key("b"), Key("a")})
    assert differ(table("a"), table("b"))


def test_objects_that_cannot_be_read_are_tried_once():
    source = "import threading\n"
    names = [f"thing{i}" for i in range(12)]
    for name in names:
        source += f"class {name.title()}:\n    lock = threading.Lock()\n"
        held = f"[{', '.join(names)}, self.lock]"
        source += f"    def __reduce__(self): return (make, ({held},))\n"
    source += "def make(x): return x\n"
    source += "".join(f"{name} = {name.title()}()\n" for name in names)
    source += f"def read(x): return [{', '.join(names)}]\n"
    assert digest(class_from(source).read) == digest(class_from(source).read)


def test_what_is_nested_too_deeply_is_refused():
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(TypeError, match="RecursionError"):
        digest(class_from("def f(x): return deep", deep=deep).f)


def test_a_tensor_that_is_conjugated_lazily_counts_by_value():
    values = torch.tensor([1 + 2j])
    assert digest(values.conj()) == digest(torch.tensor([1 - 2j]))
    assert differ(values, values.conj())
