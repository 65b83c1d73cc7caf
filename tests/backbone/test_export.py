"""Modules that torch.fx cannot trace as they are: whole modules, and torch.export."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from sk_calex.backbone._stages import Stages, inference_mode_for
from sk_calex.utils._flops import count_macs

from ._stage_models import Around, Lambda, chain, run


class Checks(nn.Module):
    """Asserts, and control flow over shapes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)
        self.register_buffer("scale", torch.linspace(1, 2, 6))

    def forward(self, x):
        assert x.shape[1] == 6
        n = x.shape[0]
        x = self.first(x) * self.scale + torch.arange(6.0)
        if x.shape[1] > 4:
            x = self.second(x).relu()
        return self.last(x.view(n, -1))


class Encoder(nn.Module):
    """Layers inside of one that torch.fx does not trace into."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.last = nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(self.encoder(self.embed(ids)).mean(1))


class Sizes(nn.Module):
    """Reads the batch size at the top, and uses it to the end."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)
        self.token = nn.Parameter(torch.randn(1, 6))

    def forward(self, x):
        n, twice = x.size(0), 2 * x.shape[0]
        shape, kind = x.shape, x.dtype
        x = self.first(x) + self.token.expand(n, -1)
        x = self.second(x.reshape(twice, 3).reshape(shape)).to(kind)
        return self.last(x.reshape(n, -1) + x.new_ones(n, 6))


class Gate(nn.Module):
    """Control flow over values, in a module of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return torch.stack([self.inner(row) if row.sum() > 0 else -row for row in x])


class Pair(nn.Module):
    """Gives two values, as many transformer layers do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.one(x), self.two(x)


class AddsPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.gate, self.last = Pair(), Gate(), nn.Linear(6, 3)

    def forward(self, x):
        a, b = self.pair(x)
        return self.last(self.gate(a) + b)


def check(module, taps, x, way, *, of=lambda module, x: module(x)):
    """Stages equal the module: whole, one row, and rows that are gathered."""
    module.eval()
    keep = torch.get_rng_state()
    stages = Stages.split(module, taps, x)
    assert torch.equal(torch.get_rng_state(), keep)
    assert stages.way == way
    with inference_mode_for(module):
        expected = of(module, x)
        for rows in ([0], [2, 0], [3, 1, 0]):
            index = torch.tensor(rows)
            outputs = run(stages, x, [index])
            torch.testing.assert_close(outputs[-1], expected[index])
        torch.testing.assert_close(run(stages, x[:1])[-1], expected[:1])
    assert sum(stages.macs) == count_macs(module, x[:1])
    assert stages.macs[0] > 0
    return stages


def test_shape_control_flow_is_cut_by_export():
    stages = check(Checks(), ["first", "second"], torch.randn(4, 6), "export")
    assert stages.macs == (36, 36, 18)


def test_layers_of_torchs_encoder_are_cut_by_export():
    taps = ["encoder.layers.0", "encoder.layers.1"]
    ids = torch.randint(0, 50, (4, 5), generator=torch.Generator().manual_seed(0))
    stages = check(Encoder(), taps, ids, "export")
    assert stages.output_shapes == ((5, 8), (5, 8), (3,))


@pytest.mark.parametrize("tap", ["first", "second"])
def test_the_batch_size_is_that_of_the_survivors(tap):
    stages = check(Sizes(), [tap], torch.randn(4, 6), "fx")
    with inference_mode_for(nn.Identity()):
        _, state = stages.advance(0, stages.start(torch.randn(5, 6)))
    assert len(state) == 1  # no sizes among what crosses


def test_a_size_that_does_not_follow_the_batch_cannot_cross():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            count = (x[::2]).shape[0]
            return self.last(self.first(x)) + 0 * count

    message = "1, 1 and 2 for 1, 2 and 3 samples, which is not proportional"
    with pytest.raises(ValueError, match=message):
        Stages.split(Halves(), ["first"], torch.randn(4, 6))


def test_modules_without_a_tap_may_do_anything():
    module = Around(nn.Sequential(nn.Linear(6, 6), Gate(), nn.Linear(6, 3)))
    check(module, ["body.0"], torch.randn(4, 6), "fx, modules whole")
    check(module, ["body.1"], torch.randn(4, 6), "fx, modules whole")


def test_the_first_part_of_a_tuple_is_the_tap():
    module, x = AddsPairs(), torch.randn(4, 6)
    stages = check(module, ["pair"], x, "fx, modules whole")
    with inference_mode_for(module):
        tap, state = stages.advance(0, stages.start(x))
        assert torch.equal(tap, module.pair(x)[0])
    assert len(state) == 2


def test_explicit_stages_pass_on_tuples_and_dicts():
    class Split(nn.Module):
        def forward(self, x):
            return {"left": x[:, :3].clone(), "right": (x[:, 3:], x)}

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Linear(6, 3)

        def forward(self, parts):
            left, (right, whole) = parts["left"], parts["right"]
            return self.weight(torch.cat([left.relu_(), right], 1) + whole)

    module = nn.Sequential(nn.Linear(6, 6), Split(), Join())
    x = torch.randn(4, 6)
    stages = check(module, ["0", "1"], x, "explicit")
    assert stages.output_shapes == ((6,), (3,), (3,))


def test_batches_with_names_are_called_with_keywords():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Embedding(20, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, mask, ids, labels=None):
            if labels is not None:
                raise AssertionError("no labels were given")
            x = self.mix(self.embed(ids)).relu() * mask[..., None]
            return {"logits": self.last(x.sum(1) / mask.sum(1)[:, None]), "states": x}

    module = Masked().eval()
    ids, mask = torch.randint(0, 20, (4, 5)), torch.ones(4, 5)
    mask[1, 2:] = 0
    batch = {"ids": ids, "mask": mask}
    stages = Stages.split(module, ["mix"], batch, output="logits")
    rows = torch.tensor([3, 1])
    with inference_mode_for(module):
        logits = run(stages, batch, [rows])[-1]
        torch.testing.assert_close(logits, module(**batch)["logits"][rows])


def test_both_refusals_are_told():
    gate = Lambda(lambda x: x if x.sum() * 0 == 0 else -x)  # mixes no samples
    module = Around(chain(gate, Lambda(lambda x: {"a": x}), Lambda(lambda x: x["a"])))
    with pytest.raises(ValueError, match=r"torch\.fx.*torch\.export.*nn\.Sequential"):
        Stages.split(module, ["body.2"], torch.randn(4, 6))


def test_export_is_quiet_and_leaves_the_module_alone(caplog, recwarn):
    module = Checks().train()
    before = dict(vars(module))
    with caplog.at_level(logging.WARNING):
        Stages.split(module, ["first"], torch.randn(4, 6))
    assert vars(module) == before
    assert module.training
    assert not recwarn.list
    assert not caplog.records
