"""Where a module can be tapped, and which taps are proposed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from sk_calex import CascadeClassifier, FrozenBackbone, suggest_taps
from sk_calex.backbone._suggest import _spread
from sk_calex.branches._defaults import count_unfitted, default_branch_for
from tests._models import TinyNet, images, tiny_vit

from ._stage_models import Around, Lambda, chain
from .test_export import Encoder


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return models.resnet18(num_classes=5)


@pytest.fixture(scope="module")
def suggested(resnet):
    return suggest_taps(resnet, torch.zeros(1, 3, 64, 64))


def test_candidates_are_where_one_tensor_crosses(resnet, suggested):
    names = [candidate.tap for candidate in suggested.candidates]
    ends = [f"layer{i}{block}" for i in (1, 2, 3) for block in (".0", "")]
    assert names == ["maxpool", *ends, "layer4.0"]
    assert [c.shape for c in suggested.candidates[:2]] == [(64, 16, 16)] * 2


def test_costs_are_those_of_the_stages(resnet, suggested):
    x = np.zeros((2, 3, 64, 64), np.float32)
    names = [candidate.tap for candidate in suggested.candidates]
    layout = FrozenBackbone(resnet, names).fit(x).layout_
    total = sum(layout.stage_macs)
    shares = np.cumsum(layout.stage_macs)[:-1] / total
    np.testing.assert_allclose([c.macs for c in suggested.candidates], shares)
    for candidate, shape in zip(suggested.candidates, layout.shapes, strict=True):
        saved = total * (1 - candidate.macs)
        branch = default_branch_for(shape, 5, saved)
        assert candidate.head == pytest.approx(count_unfitted(branch, shape, 5) / total)


def test_heads_are_those_that_a_cascade_fits_by_default(resnet):
    """What is counted before a fit is what the fit counts."""
    X = np.random.default_rng(0).normal(size=(24, 3, 64, 64)).astype(np.float32)
    taps = ["layer1", "layer3"]
    cascade = CascadeClassifier(FrozenBackbone(resnet, taps), cv=0.5, random_state=0)
    cascade.set_params(branch=None, alignment="none").fit(X, np.arange(24) % 5)
    heads = {c.tap: c.head for c in suggest_taps(resnet, X[:2]).candidates}
    total = sum(cascade.layout_.stage_macs)
    fitted = [branch.macs_ / total for branch in cascade.branches_]
    assert fitted == pytest.approx([heads[tap] for tap in taps])


def test_the_proposal_is_spread_over_the_macs(suggested):
    assert suggested.taps == ["layer1.0", "layer2.0", "layer3"]
    assert [c.tap for c in suggested.candidates if c.suggested] == suggested.taps


def test_ends_of_blocks_are_nearer_than_layers_inside():
    shares = np.array([0.14, 0.17, 0.5, 0.74])
    assert _spread(["a.b.c", "a", "b", "c"], shares, 1) == {"b"}
    assert _spread(["a.b.c", "a", "b", "c"], shares, 2) == {"a", "c"}
    assert _spread(["a.b.c", "a", "b", "c"], shares, 9) == {"a.b.c", "a", "b", "c"}


def test_the_table_prints_and_becomes_a_frame(suggested):
    lines = repr(suggested).splitlines()
    assert len(lines) == 1 + len(suggested.candidates)
    assert lines[2].startswith("* layer1.0  64 x 16 x 16")
    share = suggested.candidates[1].macs
    assert f"{share:.1%}" in lines[2]
    frame = suggested.to_frame()
    assert list(frame.columns) == ["tap", "shape", "macs", "head", "suggested"]
    assert frame.tap[frame.suggested].tolist() == suggested.taps


@pytest.mark.parametrize("make", [TinyNet, tiny_vit])
def test_auto_taps_are_the_proposal(make):
    X, net = images(4), make()
    backbone = FrozenBackbone(net, "auto").fit(X)
    taps = suggest_taps(net, torch.from_numpy(X).float() / 255).taps
    assert list(backbone.layout_.names) == taps
    named = FrozenBackbone(net, taps).fit(X)
    np.testing.assert_array_equal(backbone.transform(X), named.transform(X))
    assert backbone.fingerprint_ == named.fingerprint_


def test_modules_that_only_export_follows():
    ids = torch.randint(0, 50, (2, 5))
    suggested = suggest_taps(Encoder(), ids)
    names = [candidate.tap for candidate in suggested.candidates]
    assert {"encoder.layers.0", "encoder.layers.1"} < set(names)
    assert len(suggested.taps) == 3


def test_dicts_are_given_as_keywords():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, mask, x):
            return {"logits": self.c(self.b(self.a(x) * mask).relu())}

    batch = {"x": np.ones((3, 4)), "mask": np.ones((3, 8))}
    suggested = suggest_taps(Named(), batch, output="logits")
    # After `a` the mask is needed, too.
    assert [c.tap for c in suggested.candidates] == ["b"]


def test_what_cannot_be_suggested_is_said():
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        suggest_taps(TinyNet(), torch.zeros(1, 3, 16, 16), n=0)
    gate = Around(chain(Lambda(lambda x: x if x.sum() > 0 else -x)))
    with pytest.raises(ValueError, match=r"torch\.fx.*torch\.export.*name some"):
        suggest_taps(gate, torch.ones(2, 6))
    with pytest.raises(ValueError, match="can be cut nowhere"):
        suggest_taps(nn.Linear(3, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"the module refused a batch"):
        FrozenBackbone(TinyNet(), "auto").fit(np.zeros((2, 1, 8, 8), np.float32))
