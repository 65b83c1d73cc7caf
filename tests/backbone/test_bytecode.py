"""Fingerprints of code: what it reads, keeps and changes besides itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex.backbone._bytecode import changed_names, global_names
from sk_calex.backbone._fingerprint import module_fingerprint

from .test_fingerprint import class_from, differ, digest

CHANGES = """
def code(x, y):
    plain[x] = y
    nested[x, len(y)] = other[x]
    log.append(x)
    x.kept[0] = y
    read[x].append(y)
    y[x] = config["a"] + config.get("b")

    def inner():
        deep.update(x)

    return inner
"""


def test_names_that_code_changes():
    code = class_from(CHANGES).code.__code__
    changed = {"plain", "nested", "log", "kept", "read", "deep"}
    assert changed_names(code) == changed
    assert global_names(code) >= {"plain", "other", "config", "deep", "len"}


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
        self.scale = torch.tensor(2.0)

    def forward(self, x):
        self.kept = kept = self.layer(x) * self.scale
        return kept


def test_what_a_run_has_left_on_a_module_does_not_count():
    torch.manual_seed(0)
    module = Keeps()
    expected = module_fingerprint(module)
    module(torch.ones(1, 3))
    assert module_fingerprint(module) == expected
    with torch.inference_mode():
        module(torch.ones(2, 3))
    assert module_fingerprint(module) == expected
    module.scale = torch.tensor(3.0)
    assert module_fingerprint(module) != expected
    with torch.inference_mode():  # no method sets it: it is no activation
        module.scale = torch.tensor(2.0)
    assert module_fingerprint(module) == expected
    module.scale = module.layer.weight.sum()
    assert module_fingerprint(module) != expected


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


def test_what_code_fills_or_draws_from_counts_by_name():
    one, two = (class_from(MEMO, np=np) for _ in range(2))
    step, other = one.Step(), two.Step()
    expected = digest(step)
    assert digest(other) == expected  # though its generators were seeded otherwise
    step.__reduce_ex__(2)  # as pickling does: it notes something on the class
    step(np.ones(3))
    step(np.ones(4))
    assert digest(step) == expected
    assert differ(step, one.Step(power=2))
    assert digest(one.Borrowed()) == digest(two.Borrowed())


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
