"""A shipment crosses to a worker once, and is forgotten when the work is done."""

from __future__ import annotations

import pickle
import sys
import threading
import time

import numpy as np
import pytest

from sk_calex.backbone import _shipment
from sk_calex.backbone._shipment import Shipment, fits_into


class Content:
    """Counts how often it is pickled and unpickled."""

    pickled, unpickled = 0, 0

    def __init__(self, size=0):
        self.ballast = bytes(size)

    def __getstate__(self):
        Content.pickled += 1
        return self.__dict__

    def __setstate__(self, state):
        Content.unpickled += 1
        self.__dict__.update(state)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Content, "pickled", 0)
    monkeypatch.setattr(Content, "unpickled", 0)
    monkeypatch.setattr(_shipment, "_last", None)


def crossed(shipment):
    return pickle.loads(pickle.dumps(shipment))


def content_of(shipment):
    with shipment.opened() as content:
        return content


def test_here_the_content_is_shared():
    content = Content()
    assert content_of(Shipment(content)) is content
    assert Content.pickled == 0


def test_it_is_pickled_once_and_unpickled_once():
    shipment = Shipment(Content(10**5))
    copies = [crossed(shipment) for _ in range(3)]
    assert copies[0] is copies[1] is copies[2]
    assert Content.unpickled == 0  # only where it is opened
    there = [content_of(copy) for copy in copies]
    assert there[0] is there[1] is there[2]
    assert (Content.pickled, Content.unpickled) == (1, 1)
    # From one worker to the next it goes as it came.
    assert isinstance(content_of(crossed(crossed(copies[0]))), Content)
    assert Content.pickled == 1


def test_a_worker_keeps_the_last_one_only():
    first, second = Shipment("first"), Shipment("second")
    copy = crossed(first)
    assert content_of(crossed(second)) == "second"
    assert crossed(first) is not copy
    assert content_of(copy) == content_of(crossed(first)) == "first"


def test_its_size_tells_that_it_is_worth_sending_once():
    assert sys.getsizeof(Shipment(Content(10**5))) > 10**5


def test_functions_without_a_name_cross_too():
    assert content_of(crossed(Shipment(lambda x: x + 1)))(1) == 2


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_an_idle_worker_forgets(monkeypatch):
    monkeypatch.setattr(_shipment, "IDLE_SECONDS", 0.01)
    copy = crossed(Shipment("content"))
    with copy.opened():
        with copy.opened():
            pass
        # In use: the inner one's end starts no clock.
        assert copy._timer is None
        assert crossed(Shipment("another")) is _shipment._last
        _shipment._last = copy
    assert wait_until(lambda: _shipment._last is None)


def test_work_stops_the_clock_and_others_are_left_alone(monkeypatch):
    copy = crossed(Shipment("content"))
    content_of(copy)
    clock = copy._timer
    assert isinstance(clock, threading.Timer)
    with copy.opened():
        assert wait_until(lambda: not clock.is_alive())
        assert _shipment._last is copy
    copy._timer.cancel()
    other = crossed(Shipment("other"))
    _shipment._forget(copy)  # late: another one came
    assert _shipment._last is other


@pytest.mark.parametrize(
    ("value", "limit", "fits"),
    [
        (np.zeros(1000), 8000, False),
        (np.zeros(1000), 10_000, True),
        (list(range(1000)), 10_000, True),
        (list(range(1000)), 100, False),
        (threading.Lock(), 10_000, False),
    ],
)
def test_what_fits_into_a_size_can_be_pickled_to_it(value, limit, fits):
    assert fits_into(value, limit) is fits
