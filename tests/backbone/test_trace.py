"""Folding batch normalisation into the convolutions of traced stages."""

import pytest
import torch
import torchvision
from torch import nn

from sk_calex.backbone._stages import Stages, inference_mode_for


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=5)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # Statistics that matter: a fold that forgot them would show.
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias, 0, 0.2)
    return module.eval()


def run(stages, module, x):
    taps = []
    with inference_mode_for(module):
        state = stages.start(x)
        for k in range(stages.n_taps + 1):
            output, state = stages.advance(k, state)
            taps.append(output)
    return taps


def norm_calls(module, stages, x):
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_: calls.append(1))
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    run(stages, module, x)
    for handle in handles:
        handle.remove()
    return len(calls)


def test_folded_stages_give_the_same_values_without_normalising(resnet):
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taps = ["layer1", "layer2"]
    plain = Stages.split(resnet, taps, x)
    folded = Stages.split(resnet, taps, x, fast=True)
    for a, b in zip(run(plain, resnet, x), run(folded, resnet, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert norm_calls(resnet, plain, x) == 20
    assert norm_calls(resnet, folded, x) == 0
    assert folded.macs == plain.macs


def test_a_tapped_convolution_keeps_its_own_value(resnet):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = Stages.split(resnet, ["layer1.0.conv1"], x, fast=True)
    with inference_mode_for(resnet):
        expected = resnet.layer1[0].conv1(
            resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        )
    torch.testing.assert_close(
        run(folded, resnet, x)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_the_module_keeps_its_weights(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    run(Stages.split(resnet, ["layer1"], x, fast=True), resnet, x)
    for name, value in resnet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Shared(nn.Module):
    """Its first convolution feeds a normalisation and the output alike."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.rest = nn.ReLU(), nn.Conv2d(4, 4, 1)
        self.norm.running_mean.fill_(0.3)

    def forward(self, x):
        y = self.conv(x)
        return self.rest(self.relu(self.norm(y)) + y).mean((2, 3))


@pytest.mark.parametrize("hook", [False, True])
def test_what_others_see_is_not_folded(hook):
    module, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    if hook:
        module.norm.register_forward_hook(lambda *_: None)
    stages = Stages.split(module, ["relu"], x, fast=True)
    with inference_mode_for(module):
        torch.testing.assert_close(run(stages, module, x)[-1], module(x))


def test_a_normalisation_called_by_keyword_is_folded():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x):
            return self.last(self.norm(input=self.conv(input=x)))

    torch.manual_seed(0)
    module = Named().eval()
    module.norm.running_mean.normal_()
    x = torch.randn(2, 3, 8, 8)
    stages = Stages.split(module, ["norm"], x, fast=True)
    assert norm_calls(module, stages, x) == 0
    with torch.inference_mode():
        torch.testing.assert_close(run(stages, module, x)[-1], module(x))
