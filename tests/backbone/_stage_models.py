"""Modules to cut, and how to run the pieces."""

from functools import cache

import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

# Float64 throughout: a wrong cut cannot hide behind rounding.
TAPS = {
    "resnet": ["layer1", "layer2.0.conv1", "layer2.0.bn1", "layer3.1.relu_1"],
    "mobilenet": ["features.1", "features.5.block.2", "features.12.0"],
    "efficientnet": ["features.2", "features.4.0.block.1", "features.8"],
    "densenet": ["features.transition1", "features.denseblock2.denselayer2.conv1"],
    "convnext": ["features.1", "features.3.0.block.2"],
    "vit": ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"],
    "swin": ["features.1", "features.3.0.attn"],
}


@cache
def build(name):
    torch.manual_seed(0)
    if name == "resnet":
        module = models.resnet18(num_classes=5)
    elif name == "mobilenet":
        module = models.mobilenet_v3_small(num_classes=5)
    elif name == "efficientnet":
        module = models.efficientnet_b0(num_classes=5)
    elif name == "densenet":
        module = models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5)
    elif name == "convnext":
        blocks = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
        module = models.ConvNeXt(blocks, num_classes=5)
    elif name == "vit":
        module = models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=5)
        nn.init.normal_(module.heads.head.weight)  # zero as built: nothing to compare
    else:
        module = models.SwinTransformer(
            [2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5
        )
    return module.double().train()


def images(n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, 32, 32, dtype=torch.float64, generator=generator)


class Residual(nn.Module):
    """Two branches that meet again, a parameter of its own, an optional argument."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.full((6,), 2.0))
        self.register_buffer("shift", torch.ones(6))

    def forward(self, x, extra=None):
        if extra is not None:
            x = x + extra
        y = self.first(x * self.scale)
        z = self.second(torch.relu(y)) + self.scale.exp() + self.shift
        return self.last(torch.relu(z) + y + x)


class Lambda(nn.Module):
    """A leaf with any function for a forward."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def chain(*functions, first=6, last=3):
    layers = [Lambda(f) if not isinstance(f, nn.Module) else f for f in functions]
    return nn.Sequential(nn.Linear(first, 6), *layers, nn.Linear(6, last))


class Around(nn.Module):
    """Hide an nn.Sequential, so that the module is traced and not sliced."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


def run(stages, x, rows=None):
    """Outputs of all stages; after each tap only ``rows`` of what is left go on."""
    outputs, state = [], stages.start(x)
    for k in range(stages.n_taps + 1):
        output, state = stages.advance(k, state)
        outputs.append(output)
        if rows is not None and k < len(rows):
            state = stages.take(state, rows[k])
    assert state == ()
    return outputs
