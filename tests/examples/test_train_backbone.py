"""The recipe for backbones: what it draws, trains and writes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "examples" / "train_backbone.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_crops_and_flips_are_windows_of_the_padded_image(script):
    images = torch.arange(6 * 3 * 8 * 8, dtype=torch.int32).view(6, 3, 8, 8) + 1
    drawn = script.augment(images, torch.Generator().manual_seed(0), pad=2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    moved = 0
    for image, found in zip(padded, drawn.numpy(), strict=True):
        windows = [
            image[:, top : top + 8, left : left + 8][:, :, ::step]
            for top in range(5)
            for left in range(5)
            for step in (1, -1)
        ]
        assert any(np.array_equal(window, found) for window in windows)
        moved += not np.array_equal(image[:, 2:10, 2:10], found)
    assert moved > 0


@pytest.mark.parametrize(
    ("arch", "begins_as_nothing"), [("resnet50", True), ("resnet18", False)]
)
def test_blocks_of_three_convolutions_begin_as_nothing(script, arch, begins_as_nothing):
    module = script.small_image_resnet(arch, 20)
    block = module.layer2[1].eval()  # its shortcut is its input
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, block.conv1.in_channels, 4, 4, generator=generator)
    with torch.inference_mode():
        assert torch.equal(block(x), x) == begins_as_nothing


def test_it_writes_weights_that_fit_and_a_record(script, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 30)
    # Dark and bright: learned at once.
    X = (rng.integers(0, 100, (60, 3, 16, 16)) + 150 * y[:, None, None, None]).astype(
        np.uint8
    )
    parts = tuple(map(torch.from_numpy, (X[:40], y[:40], X[40:], y[40:])))
    monkeypatch.setattr(script, "load", lambda data: (*parts, None))
    state = torch.random.get_rng_state()
    out = tmp_path / "tiny"
    command = [
        "--arch",
        "resnet10",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
    ]
    script.main([*command, "--device", "cpu", "--out", str(out)])
    assert torch.equal(torch.random.get_rng_state(), state)
    module = script.small_image_resnet("resnet10", 2)
    module.load_state_dict(load_file(out.with_suffix(".safetensors")))
    record = json.loads(out.with_suffix(".json").read_text())
    assert len(record["validation_rows"]) == 4
    assert record["settings"]["arch"] == "resnet10"
    found = script.accuracy(module, parts[2], parts[3], script.Scale(parts[0]))
    assert found > 0.6


def test_rows_that_the_data_set_holds_back_are_not_trained_on(
    script, tmp_path, monkeypatch
):
    images = torch.zeros(12, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(12) % 2
    held = np.array([1, 4, 8])
    # The rows held back are white: the mean of the others shows that they were left.
    images[held] = 255
    images[[0, 2]] = 51
    parts = (images, labels, images, labels, held)
    monkeypatch.setattr(script, "load", lambda data: parts)
    out = tmp_path / "tiny"
    command = ["--arch", "resnet10", "--epochs", "1", "--batch-size", "9", "--bf16"]
    script.main([*command, "--device", "cpu", "--out", str(out)])
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["validation_rows"] == held.tolist()
    assert record["mean"] == pytest.approx([0.2 * 2 / 9] * 3)
