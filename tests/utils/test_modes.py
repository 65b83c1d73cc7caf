import threading

import pytest
import torch
from torch import nn

from sk_calex.utils._modes import frozen


def _module():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.ReLU()))
    module.train()
    module[1][0].eval()
    return module


def _flags(module):
    return [m.training for m in module.modules()]


def test_evaluates_without_touching_statistics():
    module = _module()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(8, 3) + 5
    with frozen(module):
        assert _flags(module) == [False] * 5
        assert torch.is_inference_mode_enabled()
        out = module(x)
    torch.testing.assert_close(out, (x / (1 + 1e-5) ** 0.5).relu())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_restores_each_flag():
    module = _module()
    before = _flags(module)
    with frozen(module):
        with frozen(module):
            pass
        assert _flags(module) == [False] * 5
    assert _flags(module) == before == [True, True, True, False, True]
    assert not torch.is_inference_mode_enabled()


def test_restores_after_an_exception():
    module = _module()
    before = _flags(module)
    with pytest.raises(RuntimeError, match="inside"), frozen(module):
        raise RuntimeError("inside")
    assert _flags(module) == before
    assert not torch.is_inference_mode_enabled()


def test_does_not_call_an_overridden_train():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("eval() may change weights, flags alone do not")

    module = nn.Sequential(Merging(2, 2))
    with frozen(module):
        assert not module[0].training
    assert module[0].training


def test_a_flag_comes_back_when_the_last_thread_is_done():
    module = _module()
    before = _flags(module)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with frozen(module):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with frozen(module[1]):  # a part of it, and done before the whole
        pass
    assert _flags(module) == [False] * 5
    leave.set()
    thread.join()
    assert _flags(module) == before
    with frozen(module):
        assert _flags(module) == [False] * 5
    assert _flags(module) == before


def test_an_interruption_gives_the_flags_back():
    class Interrupted(nn.Module):
        def modules(self):
            yield self
            raise KeyboardInterrupt

    module = Interrupted().train()
    with pytest.raises(KeyboardInterrupt), frozen(module):
        raise AssertionError("not to be run")
    assert module.training
