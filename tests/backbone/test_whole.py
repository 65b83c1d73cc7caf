"""What a module must be before it is cut, and what may be special about its layers."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from sk_calex import FrozenBackbone
from sk_calex.backbone._whole import check_module
from tests._models import TinyNet, as_stages, images

X = images(5)
TAPS = ["stem", "block1"]


def compiled_in_place():
    net = TinyNet()
    net.block1.compile(backend="eager")
    return net


def exported():
    example = torch.zeros(2, 3, 16, 16)
    return torch.export.export(TinyNet().eval(), (example,), strict=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.DataParallel(TinyNet()), r"DataParallel.*module\.module"),
        (
            lambda: torch.compile(TinyNet(), backend="eager"),
            r"compiled by torch\.compile.*module\._orig_mod",
        ),
        (lambda: torch.jit.script(nn.Linear(2, 2)), "ScriptModule.*nn.Module"),
        (exported, "exported program.*nn.Module that was exported"),
        (lambda: exported().module(), "exported program.*nn.Module that was exported"),
        (compiled_in_place, "compiled in place: its part 'block1'"),
    ],
    ids=["DataParallel", "compile", "script", "export", "export module", "in place"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_wrappers_of_torch_are_named_with_what_to_give(make, message):
    with pytest.raises(TypeError, match=message):
        FrozenBackbone(make(), TAPS).fit(X)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_script_may_be_a_stage():
    net = TinyNet().eval()
    stages = as_stages(net)
    stages.block1 = torch.jit.script(net.block1)
    # What is inside of a script does not tell channels from pixels.
    with pytest.warns(UserWarning, match=r"tap 'block1'.*\(8, 8, 8\).*layout='NCHW'"):
        FrozenBackbone(stages, TAPS).fit(X)
    got = FrozenBackbone(stages, TAPS, layout="NCHW").fit(X).transform(X)
    expected = FrozenBackbone(as_stages(net), TAPS).fit(X).transform(X)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_lazy_layers_are_refused_before_anything_runs():
    module = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    with pytest.raises(ValueError, match=r"lazy layer whose '0\.weight'.*Run the"):
        FrozenBackbone(module, ["0"]).fit(X)
    assert nn.parameter.is_lazy(module[0].weight)


def test_weights_on_the_meta_device_are_refused():
    with pytest.raises(ValueError, match=r"'stem\.0\.weight' on the meta device"):
        check_module(TinyNet().to("meta"))


class Tutorial(nn.Module):
    """The network of torch's tutorial for beginners: `view` after a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 3)
        self.pool, self.fc = nn.MaxPool2d(2, 2), nn.Linear(64, 4)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc(x.view(-1, 64))


class Viewing(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


def features_by_hand(module, names, x):
    module, found = copy.deepcopy(module).eval(), []
    for name in names:
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output: found.append(output.flatten(1).clone())
        )
    with torch.no_grad():
        logits = module(x)
    return torch.cat([*found, logits], 1).numpy()


def viewing_stages():
    conv = nn.Conv2d(3, 20, 3, padding=1)
    parts = {"conv": conv, "view": Viewing(), "fc": nn.Linear(20 * 256, 4)}
    return nn.Sequential(OrderedDict(parts))


def hidden_view():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), viewing_rest())


def viewing_rest():
    return nn.Sequential(Viewing(), nn.Linear(4 * 256, 4))


@pytest.mark.parametrize(
    ("make", "taps"),
    [
        (Tutorial, ["conv1", "conv2"]),
        (viewing_stages, ["conv"]),
        (hidden_view, ["0"]),
        (hidden_view, ["0.0"]),
    ],
    ids=["traced", "explicit", "explicit, inside", "traced, inside"],
)
@pytest.mark.parametrize("n", [1, 5])
def test_a_view_after_a_convolution_is_as_in_the_module(make, taps, n):
    torch.manual_seed(0)
    module, x = make(), torch.randn(n, 3, 16, 16)
    got = FrozenBackbone(module, taps, pool=None).fit(x).transform(x)
    expected = features_by_hand(module, taps, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class ClassToken(nn.Module):
    """Passes a parameter of its own to a submodule."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 6))
        self.first, self.mix = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.mix(self.token) + self.first(x))


def parametrised(wrap):
    net = TinyNet()
    wrap(net.block1[0])
    wrap(net.head[2])
    return net


LAYERS = {
    "weight_norm": lambda: parametrised(parametrizations.weight_norm),
    "spectral_norm": lambda: parametrised(parametrizations.spectral_norm),
    "orthogonal": lambda: parametrised(parametrizations.orthogonal),
    "old weight_norm": lambda: parametrised(nn.utils.weight_norm),
    "token": ClassToken,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_layers_with_made_weights_fit_and_can_be_trained_on(name):
    torch.manual_seed(0)
    module = LAYERS[name]().eval()
    token = isinstance(module, ClassToken)
    x = torch.rand(5, 6) if token else torch.rand(5, 3, 16, 16)
    taps = ["first"] if token else TAPS
    backbone = FrozenBackbone(module, taps, pool=None).fit(x)
    got = backbone.layout_.block(backbone.transform(x), len(taps))
    with torch.no_grad():
        np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-4, atol=1e-5)
    for part in module.modules():
        tensors = [v for v in vars(part).values() if isinstance(v, torch.Tensor)]
        assert not any(t.is_inference() for t in [*tensors, *part.buffers(False)])
    module.train()(x).sum().backward()
