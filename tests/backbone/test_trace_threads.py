"""fx patches every module while it traces: other threads must not notice."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from sk_calex.backbone._stages import Stages, inference_mode_for


class Slow(nn.Module):
    """A module whose forward, and so its trace, waits for other threads to run."""

    def __init__(self, entered, leave):
        super().__init__()
        self.stem, self.rest = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))
        self._events = (entered, leave)

    def forward(self, x):
        x = self.stem(x) * self.scale
        if isinstance(x, torch.fx.Proxy):
            entered, leave = self._events
            entered.set()
            assert leave.wait(60)
        return self.rest(torch.relu(x))


def test_modules_run_for_real_while_another_thread_traces():
    entered, leave = threading.Event(), threading.Event()
    slow, other, x = Slow(entered, leave), nn.Linear(4, 2), torch.ones(3, 4)
    expected = other(x)
    with ThreadPoolExecutor(1) as pool:
        traced = pool.submit(Stages.split, slow, ["stem"], x)
        assert entered.wait(60)
        try:
            found = other(x)
        finally:
            leave.set()
        stages = traced.result()
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected)
    with inference_mode_for(slow):
        _, state = stages.advance(0, stages.start(x))
        torch.testing.assert_close(stages.advance(1, state)[0], slow(x))


def test_several_threads_may_trace_at_once():
    modules = [nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 3)]) for _ in range(8)]

    class Chain(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.stem, self.rest = parts

        def forward(self, x):
            return self.rest(torch.relu(self.stem(x)))

    with ThreadPoolExecutor(4) as pool:
        split = [
            pool.submit(Stages.split, Chain(parts), ["stem"], torch.ones(2, 4))
            for parts in modules
        ]
        assert all(future.result().macs == (32, 24) for future in split)
