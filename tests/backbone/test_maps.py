"""Channels first for the heads, whatever the layout of a tap; and pooling."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SwinTransformer
from torchvision.models.video import SwinTransformer3d

from sk_calex import BranchClassifier, FrozenBackbone
from sk_calex.backbone._maps import tap_maps
from tests._models import TinyNet, images

X = images(5)


def swin():
    torch.manual_seed(0)
    return SwinTransformer([2, 2], 12, [1, 1], [2, 2], [2, 2], num_classes=4).eval()


class Permuted(nn.Module):
    """The axes of a tap in another order, and back after it."""

    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(*self.axes)


def channels_first_twin(net):
    """The same network with a tap that has channels first."""
    body = list(net.features)
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(*body[:2], Permuted(0, 3, 1, 2)),
            rest=nn.Sequential(
                *(Permuted(0, 2, 3, 1), *body[2:], net.norm, net.permute, net.avgpool),
                *(net.flatten, net.head),
            ),
        )
    )


@pytest.fixture(scope="module")
def trained():
    """A Swin that has learned which colour of an image is bright, and its data."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 160)
    X = rng.normal(size=(160, 3, 16, 16)).astype(np.float32)
    X[np.arange(160), y] += 0.5
    net = swin().train()
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval(), X, y


def test_a_branch_on_a_swin_is_that_of_its_channels_first_twin(trained):
    net, X, y = trained
    last = FrozenBackbone(net, ["features.1"], pool=4).fit(X)
    first = FrozenBackbone(channels_first_twin(net), ["first"], pool=4).fit(X)
    assert last.layout_.shapes == first.layout_.shapes == ((12, 4, 4),)
    features = last.transform(X)
    np.testing.assert_allclose(features, first.transform(X), rtol=1e-4, atol=1e-5)
    wrong = FrozenBackbone(net, ["features.1"], pool=4, layout="NCHW").fit(X)
    scores = {}
    for name, backbone in {"last": last, "first": first, "wrong": wrong}.items():
        tap = backbone.layout_.block(backbone.transform(X), 0)
        branch = BranchClassifier(
            "gap",
            feature_shape=backbone.layout_.shapes[0],
            random_state=0,
            max_iter=50,
        )
        scores[name] = branch.fit(tap[:120], y[:120]).score(tap[120:], y[120:])
    assert scores["last"] == pytest.approx(scores["first"], abs=0.05)
    assert scores["last"] > scores["wrong"] + 0.2


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_timm_says_its_layout():
    timm = pytest.importorskip("timm")
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=4,
        num_classes=4,
    )
    assert net.output_fmt == "NHWC"
    x = torch.rand(3, 3, 32, 32)
    backbone = FrozenBackbone(net, ["layers.0"], pool=None).fit(x)
    assert backbone.layout_.shapes == ((8, 16, 16),)
    with torch.no_grad():
        tap = net.eval().layers[0](net.patch_embed(x)).permute(0, 3, 1, 2).flatten(1)
    got = backbone.layout_.block(backbone.transform(x), 0)
    np.testing.assert_allclose(got, tap.numpy(), rtol=1e-4, atol=1e-5)


class Op(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def ends(tap, width):
    """A network whose tap gives what a function says."""
    last = nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(OrderedDict(tap=tap, last=last))


def map_of(module, shape, **settings):
    settings = {"pool": 4, "layout": None} | settings
    return tap_maps(module, ["tap"], [shape], **settings)[0]


CONV, LINEAR = nn.Conv2d(3, 6, 1), nn.Linear(9, 6)


@pytest.mark.parametrize(
    ("layers", "shape", "moved"),
    [
        ([CONV], (6, 8, 10), False),  # the layers say so
        ([LINEAR], (8, 10, 6), True),
        ([nn.LayerNorm(6)], (8, 10, 6), True),
        ([nn.GroupNorm(2, 6)], (6, 10, 8), False),
        ([nn.BatchNorm2d(6), LINEAR], (6, 8, 10), False),
        ([CONV, LINEAR], (6, 8, 8), False),  # a block with both: 6 is not 8
        ([CONV, LINEAR], (8, 8, 6), True),
        ([], (7, 7, 20), True),  # the shape can mean nothing else
        ([], (20, 7, 7), False),
        ([nn.Conv1d(3, 6, 1)], (6, 20), True),  # sequences: channels go last
        ([LINEAR], (20, 6), False),
        ([], (20, 6), False),
        ([LINEAR], (6,), False),
    ],
)
def test_layouts_are_found(layers, shape, moved):
    module = ends(nn.Sequential(*layers), 1)
    assert map_of(module, shape, pool=None).moved == moved


@pytest.mark.parametrize("shape", [(7, 7, 7), (5, 7, 9)])
def test_layouts_that_are_not_known_are_said(shape):
    module = nn.Sequential(OrderedDict(tap=nn.ReLU()))
    with pytest.warns(UserWarning, match=r"tap 'tap'.*not known.*layout='NCHW'"):
        assert not map_of(module, shape).moved
    assert not map_of(module, shape, layout="NCHW").moved
    assert map_of(module, shape, layout={"tap": "NHWC"}).moved


def test_modules_around_an_operation_tell_its_layout():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=(1, 2), padding=1)

        def forward(self, x):
            return torch.relu(self.conv(x))

    module = ends(Block(), 6 * 16 * 8)
    backbone = FrozenBackbone(module, ["tap.relu"], pool=None).fit(X)
    assert backbone.layout_.shapes == ((6, 16, 8),)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("NLC", "layout='NLC' fits no tap"),
        ({"stem": "NCL"}, r"layout='NCL' does not fit tap 'stem'.*\(4, 16, 16\)"),
        ({"stem": "HWC"}, "layout='HWC' for tap 'stem' is not usable"),
        ({"steam": "NCHW"}, r"layout names \['steam'\], which are not among"),
        ("CHW", "'layout' parameter"),
    ],
    ids=str,
)
def test_layouts_that_do_not_fit_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        FrozenBackbone(TinyNet(), ["stem", "block1"], layout=layout).fit(X)


def test_sequences_of_convolutions_become_tokens():
    torch.manual_seed(0)
    module = ends(nn.Conv1d(4, 6, 3, padding=1), 6 * 10)
    x = torch.rand(3, 4, 10)
    backbone = FrozenBackbone(module, ["tap"]).fit(x)
    assert backbone.layout_.shapes == ((10, 6),)
    with torch.no_grad():
        expected = module.tap(x).transpose(1, 2).flatten(1)
    got = backbone.layout_.block(backbone.transform(x), 0)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)
    same = FrozenBackbone(module, ["tap"], layout="NLC").fit(x)
    assert same.layout_.shapes == ((6, 10),)


@pytest.mark.parametrize("channels_last", [False, True])
def test_frames_of_videos_are_averaged(channels_last):
    torch.manual_seed(0)
    if channels_last:
        video = SwinTransformer3d(
            [2, 2, 2], 8, [1, 1], [2, 2], [2, 2, 2], num_classes=3
        ).eval()
        tap, kwargs = "features.0", {"pool": None}
    else:
        video = ends(nn.Conv3d(3, 8, 3, padding=1), 8 * 4 * 16 * 16)
        tap, kwargs = "tap", {"pool": 4}
    x = torch.rand(3, 3, 4, 16, 16)
    backbone = FrozenBackbone(video, [tap], **kwargs).fit(x)
    found = []
    hook = video.get_submodule(tap).register_forward_hook(lambda *a: found.append(a[2]))
    with torch.no_grad():
        video(x)
    hook.remove()
    maps = found[0].movedim(-1, 1) if channels_last else found[0]
    expected = maps.mean(2)
    if not channels_last:
        expected = F.adaptive_avg_pool2d(expected, 4)
    got = backbone.layout_.block(backbone.transform(x), 0)
    assert backbone.layout_.shapes[0] == tuple(expected.shape[1:])
    np.testing.assert_allclose(got, expected.flatten(1).numpy(), rtol=1e-4, atol=1e-5)


def test_taps_of_more_axes_are_refused():
    module = ends(Op(lambda x: x.reshape(-1, 3, 2, 2, 2, 2)), 48)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2, 2, 2\) for one sample"):
        FrozenBackbone(module, ["tap"]).fit(torch.rand(2, 48))


def test_the_layout_counts_in_the_fingerprint():
    x = torch.rand(2, 3, 8, 8)
    module = ends(nn.Conv2d(3, 8, 1), 8 * 64)
    prints = [
        FrozenBackbone(module, ["tap"], pool=4, layout=layout).fit(x).fingerprint_
        for layout in ("NCHW", "NHWC", None)
    ]
    assert prints[0] != prints[1]
    assert prints[0] == prints[2]
