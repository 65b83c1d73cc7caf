import threading

import pytest
import torch
from torch import nn

from sk_calex.utils._modes import inference_mode_for, trainable


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
    with inference_mode_for(module):
        assert _flags(module) == [False] * 5
        assert torch.is_inference_mode_enabled()
        out = module(x)
    torch.testing.assert_close(out, (x / (1 + 1e-5) ** 0.5).relu())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_restores_each_flag():
    module = _module()
    before = _flags(module)
    with inference_mode_for(module):
        with inference_mode_for(module):
            pass
        assert _flags(module) == [False] * 5
    assert _flags(module) == before == [True, True, True, False, True]
    assert not torch.is_inference_mode_enabled()


def test_restores_after_an_exception():
    module = _module()
    before = _flags(module)
    with pytest.raises(RuntimeError, match="inside"), inference_mode_for(module):
        raise RuntimeError("inside")
    assert _flags(module) == before
    assert not torch.is_inference_mode_enabled()


def test_does_not_call_an_overridden_train():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("eval() may change weights, flags alone do not")

    module = nn.Sequential(Merging(2, 2))
    with inference_mode_for(module):
        assert not module[0].training
    assert module[0].training


def test_a_flag_comes_back_when_the_last_thread_is_done():
    module = _module()
    before = _flags(module)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with inference_mode_for(module):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with inference_mode_for(module[1]):  # a part of it, and done before the whole
        pass
    assert _flags(module) == [False] * 5
    leave.set()
    thread.join()
    assert _flags(module) == before
    with inference_mode_for(module):
        assert _flags(module) == [False] * 5
    assert _flags(module) == before


def test_an_interruption_gives_the_flags_back():
    class Interrupted(nn.Module):
        def modules(self):
            yield self
            raise KeyboardInterrupt

    module = Interrupted().train()
    with pytest.raises(KeyboardInterrupt), inference_mode_for(module):
        raise AssertionError("not to be run")
    assert module.training


def test_autocast_around_a_call_is_off_inside():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with inference_mode_for(layer):
            assert layer(x).dtype == torch.float32
        with trainable():
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16


class Keeping(nn.Module):
    """Keeps what it computes, in an attribute and in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.norm = nn.Linear(2, 2)

    def forward(self, x):
        self.last, self.seen = x * 2, x.sum(0)
        return self.norm(x)


def test_no_inference_tensor_is_left_on_a_module():
    module, x = Keeping(), torch.randn(3, 2)
    with inference_mode_for(module):
        module(x)
    assert not module.last.is_inference()
    assert not module.seen.is_inference()
    torch.testing.assert_close(module.last, x * 2)
    module.last.add_(1)  # refused for an inference tensor


def test_inference_tensors_of_the_user_stay():
    module = Keeping()
    with torch.inference_mode():
        module.given = given = torch.ones(2)
    with inference_mode_for(module):
        module(torch.randn(3, 2))
    assert module.given is given
