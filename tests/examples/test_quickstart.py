"""The quickstart runs offline, prints its table, draws, and keeps what it trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.utils import Bunch
from torch import nn
from torchvision.models import resnet18

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of_table(printed: str) -> list[list[str]]:
    """Words of the lines that begin with a margin."""
    lines = [line.replace("no alignment", "reference") for line in printed.splitlines()]
    return [words for line in lines if (words := line.split()) and words[0][0] in "+-"]


def test_it_prints_draws_and_keeps_the_weights(
    quickstart: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--quick", "--epochs", "1", "--output", str(tmp_path)]
    quickstart.main(command)
    printed = capsys.readouterr().out

    rows = rows_of_table(printed)
    expected = [
        (f"{margin:+.2f}", name.replace("no alignment", "reference"))
        for name, margins in quickstart.MARGINS.items()
        for margin in margins
    ]
    assert [(row[0], row[1]) for row in rows] == expected
    backbone = float(printed.split("Plain backbone: ")[1].split("%")[0])
    for _, _, accuracy, drop, saved, speed_up, *shares in rows:
        assert float(accuracy) + float(drop) == pytest.approx(backbone, abs=0.02)
        assert saved.endswith("%")
        assert float(saved[:-1]) < 100
        assert float(speed_up.removesuffix("x")) > 0
        assert sum(map(float, shares)) == pytest.approx(100, abs=0.3)
        assert len(shares) == 4
    assert "70% of the ink" in printed
    assert "seed 0" in printed
    assert "trained in" in printed

    with Image.open(tmp_path / "quickstart_digits.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 2
    (weights,) = tmp_path.glob("cache/digits-*.safetensors")
    trained_at = weights.stat().st_mtime_ns

    quickstart.main(command)
    again = capsys.readouterr().out
    assert f"weights kept from an earlier run, {weights}" in again
    assert weights.stat().st_mtime_ns == trained_at
    # The same weights, seeds and rows: all but the clock is the same.
    assert [r[:5] + r[6:] for r in rows_of_table(again)] == [
        r[:5] + r[6:] for r in rows
    ]


@pytest.fixture
def tiny() -> tuple[nn.Module, Bunch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=generator)
    data = Bunch(data=images.numpy(), target=np.arange(6) % 2, train=np.arange(6))
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), data


def test_damaged_or_foreign_weights_are_not_used(
    quickstart: ModuleType,
    tmp_path: Path,
    tiny: tuple[nn.Module, Bunch],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, data = tiny
    settings = {"epochs": 1}
    quickstart.train_or_load(module, data, settings, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    quickstart.train_or_load(module, data, settings, tmp_path)
    assert "trained in" in capsys.readouterr().out

    kept = {name: value.clone() for name, value in module.state_dict().items()}
    nn.init.zeros_(module[1].weight)
    quickstart.train_or_load(module, data, settings, tmp_path)
    assert "weights kept from an earlier run" in capsys.readouterr().out
    torch.testing.assert_close(module.state_dict(), kept, rtol=0, atol=0)

    quickstart.train_or_load(module, data, {"epochs": 2}, tmp_path)
    assert "trained in" in capsys.readouterr().out


def test_cifar100_takes_half_precision_weights(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = resnet18(num_classes=20)
    given.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in given.state_dict().items()
    }
    path = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(halves, path)
    rows = np.arange(1000)
    cifar = Bunch(train=rows, val=rows, test=rows)
    homes = []
    monkeypatch.setattr(
        quickstart,
        "load_cifar100_coarse",
        lambda data_home: homes.append(data_home) or cifar,
    )
    args = SimpleNamespace(data_home=tmp_path, backbone=path, quick=True)
    data, module, preprocess, _ = quickstart.load_cifar100(args)

    assert homes == [tmp_path]
    assert len(data.train) == 800
    for name, value in module.state_dict().items():
        expected = given.state_dict()[name]
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, halves[name].to(value.dtype), rtol=0, atol=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 2), dtype=np.uint8)
    mean, std = np.array([[0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]])
    slow = (images / 255 - mean[:, None, None]) / std[:, None, None]
    fast = preprocess(torch.from_numpy(images))
    assert fast.dtype == torch.float32
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "command", [["--data", "cifar100"], ["--backbone", "x.safetensors"]]
)
def test_cifar100_and_a_backbone_go_together(
    quickstart: ModuleType, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        quickstart.main(command)
    assert "need each other" in capsys.readouterr().err
