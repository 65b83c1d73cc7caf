"""The handle that clones share: who finds what, for how long, and how much of it."""

import pickle
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex.calibration import StageTable
from sk_calex.cascade import _fit_cache as module
from sk_calex.cascade._fit_cache import Fit, FitRequest, SharedFits, size_of
from tests._cascade_models import tiny_backbone


def request(key, point=0, repeatable=True):
    return FitRequest(key, point, repeatable)


def test_found_under_its_key_only():
    fits = SharedFits()
    assert fits.find(request("a")) is None
    fits.keep(request("a"), {"x_": 1}, "stamp")
    fit = fits.find(request("a", point=3))
    assert (fit.state, fit.stamp) == ({"x_": 1}, "stamp")
    assert fits.find(request("b")) is None


def test_what_draws_is_not_found_at_the_same_point():
    fits = SharedFits()
    fits.keep(request("a", 0, repeatable=False), {}, None)
    assert fits.find(request("a", 0, repeatable=False)) is None
    assert fits.find(request("a", 1, repeatable=False)) is not None
    assert fits.find(request("a", 1, repeatable=False)) is None
    fits.keep(request("a", 1, repeatable=False), {}, None)  # a new draw
    assert fits.find(request("a", 0, repeatable=False)) is not None


def test_the_oldest_in_use_go_first(monkeypatch):
    monkeypatch.setattr(module, "MAX_FITS", 2)
    fits = SharedFits()
    fits.keep(request("a"), {}, None)
    fits.keep(request("b"), {}, None)
    fits.find(request("a"))
    fits.keep(request("c"), {}, None)
    assert [fits.find(request(key)) is not None for key in "abc"] == [True, False, True]
    assert len(fits) == 2


def test_no_more_bytes_than_allowed(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    fits = SharedFits()
    for key in "abc":
        fits.keep(request(key), {"x_": np.zeros(50)}, None)  # 400 bytes each
    assert len(fits) == 2
    fits.keep(request("d"), {"x_": np.zeros(500)}, None)
    assert len(fits) == 0


def test_tables_count_and_are_few(monkeypatch):
    fit = Fit({}, None)
    made = []

    def make():
        made.append(1)
        return StageTable.empty(2, 10, 3)

    tables = [fit.table(str(i % 6), make) for i in range(12)]
    assert len(made) == module.MAX_TABLES == 4
    assert tables[0] is tables[6]
    assert tables[4] is tables[5] is None
    assert fit.nbytes == 4 * 2 * 10 * 5 * 8
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    large = Fit({"x_": np.zeros(50)}, None)
    assert large.table("a", make) is None
    with pytest.raises(ZeroDivisionError):
        Fit({}, None).table("a", lambda: 1 / 0)


def test_one_thread_at_a_time():
    fits, order = SharedFits(), []

    def work(name, key):
        with fits.turn(request(key)):
            if fits.find(request(key)) is None:
                order.append(f"{name} trains")
                time.sleep(0.05)
                fits.keep(request(key), {}, None)
            else:
                order.append(f"{name} finds")

    names = [("first", "a"), ("second", "a"), ("third", "a"), ("other", "b")]
    threads = [threading.Thread(target=work, args=args) for args in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("trains" in line for line in order) == 2
    assert "other trains" in order
    assert not fits._turns


def test_a_turn_ends_with_an_error():
    fits = SharedFits()
    with pytest.raises(ZeroDivisionError), fits.turn(request("a")):
        raise ZeroDivisionError
    with fits.turn(request("a")):
        assert fits.find(request("a")) is None
    assert not fits._turns


def test_copies_are_empty():
    fits = SharedFits()
    fits.keep(request("a"), {"x_": np.zeros(3)}, None)
    assert len(pickle.loads(pickle.dumps(fits))) == 0


def test_sizes():
    layer = nn.Linear(3, 2)
    array = np.zeros(10)

    class Held:
        def __init__(self):
            self.weights, self.again = array, array

    assert size_of(array) == 80
    assert size_of([array, (array, {"x": torch.zeros(2)})]) == 80 + 8
    assert size_of(layer) == 4 * (6 + 2)
    assert size_of(Held()) == 80
    assert size_of([1, "text", b"bytes", None, int]) == 0
    # A backbone is the user's own.
    assert size_of(tiny_backbone()) == 0
    loop = [array]
    loop.append(loop)
    assert size_of(loop) == 80
