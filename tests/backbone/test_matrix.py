"""Families of architectures at small sizes, with random weights: cut right, each way.

What is checked of each: stages composed equal the module, costs add up to the module's,
a batch equals its samples one by one, survivors that are gathered equal the same rows
of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import swin_transformer, vision_transformer

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone
from sk_calex.backbone._samples import Samples
from sk_calex.backbone._stages import Stages
from sk_calex.backbone._whole import WholeModule
from sk_calex.utils._flops import count_macs
from sk_calex.utils._modes import inference_mode_for

from ._stage_models import run

IMAGE, SMALL = (3, 64, 64), (3, 32, 32)


def of_torchvision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=4, **settings)


# Name: how it is built, taps, shape of a sample.
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...]]] = {
    "alexnet": (of_torchvision("alexnet"), ["features.2", "features.5"], IMAGE),
    "convnext": (
        lambda: torchvision.models.ConvNeXt(
            [
                torchvision.models.convnext.CNBlockConfig(16, 32, 2),
                torchvision.models.convnext.CNBlockConfig(32, None, 2),
            ],
            num_classes=4,
        ),
        ["features.1", "features.2"],
        SMALL,
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=4),
        ["features.denseblock1", "features.transition2"],
        SMALL,
    ),
    "efficientnet": (
        of_torchvision("efficientnet_b0"),
        ["features.2", "features.4"],
        SMALL,
    ),
    "mnasnet": (of_torchvision("mnasnet0_5"), ["layers.8", "layers.10"], IMAGE),
    "mobilenet": (
        of_torchvision("mobilenet_v3_small"),
        ["features.2", "features.8"],
        IMAGE,
    ),
    "regnet": (
        of_torchvision("regnet_x_400mf"),
        ["trunk_output.block1", "trunk_output.block3"],
        SMALL,
    ),
    "resnet": (of_torchvision("resnet18"), ["layer1", "layer2.0", "layer3"], SMALL),
    "shufflenet": (of_torchvision("shufflenet_v2_x0_5"), ["stage2", "stage3"], IMAGE),
    "squeezenet": (
        of_torchvision("squeezenet1_1"),
        ["features.3", "features.7"],
        IMAGE,
    ),
    "swin": (
        lambda: swin_transformer.SwinTransformer(
            [2, 2], 12, [2, 2], [2, 2], [4, 4], num_classes=4
        ),
        ["features.1", "features.3.0"],
        SMALL,
    ),
    "vit": (
        lambda: vision_transformer.VisionTransformer(
            32, 8, 3, 2, 16, 32, num_classes=4
        ),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
        SMALL,
    ),
}

TIMM: dict[str, tuple[dict[str, Any], list[str], tuple[int, ...], str]] = {
    "vit_tiny_patch16_224": (
        {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48},
        ["blocks.0", "blocks.1"],
        SMALL,
        "fx",
    ),
    "swin_tiny_patch4_window7_224": (
        {
            "img_size": 32,
            "patch_size": 2,
            "embed_dim": 12,
            "depths": (2, 2),
            "num_heads": (2, 2),
            "window_size": 4,
        },
        ["layers.0"],
        SMALL,
        "fx",
    ),
    "mambaout_femto": ({"depths": (1, 1, 1, 1)}, ["stages.0", "stages.1"], IMAGE, "fx"),
    "mobilevit_xxs": ({}, ["stages.1", "stages.3"], IMAGE, "fx, modules whole"),
}


def randomised(build: Callable[[], nn.Module]) -> nn.Module:
    """Random weights, norms and statistics, so that no layer computes nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().eval()
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and float(parameter.detach().abs().max()) == 0:
                nn.init.normal_(parameter)  # heads that begin at zero
            if "layer_scale" in name or "gamma" in name:
                nn.init.constant_(parameter, 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


def check_family(
    module: nn.Module, taps: list[str], x: Any, way: str, output: Any = None
) -> Stages:
    stages = Stages.split(module, taps, x, output=output, fast=True)
    assert stages.way == way
    keys = tuple(x) if isinstance(x, dict) else None
    whole = WholeModule(module, keys, output)
    tensors: list[Tensor] = list(x.values()) if isinstance(x, dict) else [x]

    def rows(index: Any) -> Any:
        some = [tensor[index] for tensor in tensors]
        return some[0] if keys is None else dict(zip(keys, some, strict=True))

    with inference_mode_for(module):
        expected = whole(*(tensor.clone() for tensor in tensors))
        scale = float(expected.abs().max())
        close = {"rtol": 0.0, "atol": 1e-5 * max(1.0, scale)}
        torch.testing.assert_close(run(stages, x)[-1], expected, **close)
        for i in range(len(expected)):
            alone = run(stages, rows(slice(i, i + 1)))[-1]
            torch.testing.assert_close(alone, expected[i : i + 1], **close)
        keep = torch.tensor([3, 1])
        gathered = run(stages, x, [keep])[-1]
        torch.testing.assert_close(gathered, expected[keep], **close)
    assert sum(stages.macs) == count_macs(whole, *(tensor[:1] for tensor in tensors))
    assert min(stages.macs) > 0
    return stages


@pytest.mark.parametrize("name", TORCHVISION)
def test_families_of_torchvision(name: str) -> None:
    build, taps, shape = TORCHVISION[name]
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    check_family(randomised(build), taps, x, "fx")


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter (LoRA), as the library peft wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.active = base, ["default"]
        down = nn.Linear(base.in_features, 2, bias=False)
        up = nn.Linear(2, base.out_features, bias=False)
        self.lora_A = nn.ModuleDict({"default": down})
        self.lora_B = nn.ModuleDict({"default": up})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        kind = result.dtype
        for name in self.active:
            if name not in self.lora_A:
                continue
            x = x.to(self.lora_A[name].weight.dtype)
            result = result + 2.0 * self.lora_B[name](self.lora_A[name](x))
        return result.to(kind)


def test_adapters_are_cut_as_the_plain_model() -> None:
    build, taps, shape = TORCHVISION["vit"]
    module = randomised(build)
    for layer in module.encoder.layers:
        layer.mlp[0] = Adapted(layer.mlp[0])
    check_family(module.eval(), taps, torch.randn(4, *shape), "fx")


@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    settings, taps, shape, way = TIMM[name]
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    module = randomised(lambda: timm.create_model(name, num_classes=4, **settings))
    check_family(module, taps, x, way)


INSTALL = "pip install transformers"
SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=INSTALL)
    config = transformers.BertConfig(
        vocab_size=50, intermediate_size=32, num_labels=3, **SIZE
    )
    return randomised(lambda: transformers.BertForSequenceClassification(config))


def hugging_face_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=INSTALL)
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, intermediate_size=32, num_labels=3, **SIZE
    )
    return randomised(lambda: transformers.ViTForImageClassification(config))


def hugging_face_swin() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=INSTALL)
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
        num_labels=3,
    )
    return randomised(lambda: transformers.SwinForImageClassification(config))


def tokens(n: int = 12) -> dict[str, np.ndarray]:
    """Sentences of several lengths, padded, with their masks."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (n, 10))
    lengths = rng.integers(4, 11, n)
    mask = (np.arange(10) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_bert_of_hugging_face() -> None:
    module = bert()
    x = {name: torch.from_numpy(values[:4]) for name, values in tokens().items()}
    stages = check_family(
        module, ["bert.encoder.layer.0", "bert.encoder.layer.1"], x, "export", "logits"
    )
    assert stages.output_shapes == ((10, 16), (10, 16), (3,))


def test_a_cascade_on_bert_takes_token_ids_and_masks() -> None:
    X, y = tokens(), np.arange(12) % 3
    backbone = FrozenBackbone(bert(), ["bert.encoder.layer.0"], output="logits")
    branch = BranchClassifier("gap", max_iter=1)
    cascade = CascadeClassifier(
        backbone, branch=branch, margin=0.05, random_state=0
    ).fit(X, y)
    live = np.concatenate(every_stage(cascade.backbone_, X), 1)
    features = cascade.backbone_.transform(X)
    np.testing.assert_allclose(live, features, rtol=1e-4, atol=1e-5)
    some = {name: values[[7, 2]] for name, values in X.items()}
    np.testing.assert_allclose(
        *(cascade.stage_probabilities(some), cascade.stage_probabilities(X)[:, [7, 2]]),
        rtol=1e-4,
    )
    assert cascade.predict(X).shape == (12,)


def test_a_vit_of_hugging_face() -> None:
    module = hugging_face_vit()
    layers = next(n for n, m in module.named_modules() if isinstance(m, nn.ModuleList))
    x = {"pixel_values": torch.randn(4, 3, 32, 32)}
    check_family(module, [f"{layers}.0", f"{layers}.1"], x, "export", "logits")


def test_a_swin_of_hugging_face() -> None:
    """Its layers may return tuples; their blocks keep tokens."""
    taps = ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.0"]
    x = {"pixel_values": torch.randn(4, 3, 32, 32)}
    stages = check_family(hugging_face_swin(), taps, x, "export", "logits")
    assert stages.output_shapes == ((256, 12), (64, 24), (3,))


@pytest.mark.parametrize("name", ["resnet", "swin", "vit"])
def test_staged_decisions_are_those_from_features(name: str) -> None:
    build, taps, shape = TORCHVISION[name]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, *shape)).astype(np.float32)
    backbone = FrozenBackbone(randomised(build), taps, pool=2)
    y = np.arange(40) % 4
    branch = BranchClassifier("gap", max_iter=1)
    cascade = CascadeClassifier(
        backbone, branch=branch, margin=0.05, random_state=0
    ).fit(X, y)
    features = cascade.backbone_.transform(X)
    live = np.concatenate(every_stage(cascade.backbone_, X), 1)
    np.testing.assert_allclose(live, features, rtol=1e-4, atol=1e-4)


def every_stage(backbone: FrozenBackbone, X: Any) -> list[np.ndarray]:
    runner, found = backbone.runner(), []
    samples = Samples(X)
    with runner.inference_mode():
        state = runner.start(samples.raw(slice(0, len(samples))))
        for stage in range(backbone.layout_.n_taps + 1):
            output, state = runner.advance(stage, state)
            found.append(output.flatten(1).numpy())
    return found
