"""The examples run offline, at a tiny size, and print and draw what they say."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"

# Those with a test of their own elsewhere, and those that are no examples of a use.
ELSEWHERE = {
    "distributed_extraction",
    "quickstart",
    "serve",
    "serve_ray",
    "train_backbone",
}
RUN_HERE = {
    "budgeted_margin",
    "dataset_on_disk",
    "hugging_face_models",
    "pipeline_grid_search",
    "small_model_first",
    "survivors_and_weights",
    "tabular_cascade",
    "timm_model",
    "token_features",
    "transfer_final_estimator",
}

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run an example's `main` at its tiny size; gives what it printed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    # Nothing of torch's cache: weights that lie on this machine are not the test's.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def call(name: str, *options: str) -> str:
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        module.main(["--quick", "--output", str(tmp_path), *options])
        return capsys.readouterr().out

    return call


def percentages(printed: str, pattern: str) -> list[list[float]]:
    """The numbers before a per cent sign, of each line that fits the pattern."""
    lines = [line for line in printed.splitlines() if re.search(pattern, line)]
    return [[float(n) for n in re.findall(r"([-\d.]+)%", line)] for line in lines]


def is_drawn(path: Path) -> bool:
    """Tell whether a picture holds more than a blank page."""
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(picture.convert("L").getcolors()) > 2


def test_every_example_has_a_test() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == RUN_HERE | ELSEWHERE


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_example_imports_no_other_example(path: Path) -> None:
    """A reader copies one file, and it runs; replicas copy their service, too."""
    neighbours = {other.stem for other in EXAMPLES.glob("*.py")} | {"benchmarks"}
    if path.stem == "serve_ray":
        neighbours -= {"serve"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & neighbours


def test_pipeline_grid_search(run: Run, tmp_path: Path) -> None:
    printed = run("pipeline_grid_search")
    assert len(percentages(printed, r"^ *[+-]0\.\d\d ")) == 4
    assert printed.count("<- taken") == 1
    trained, without = map(int, re.findall(r"(\d+)", printed.splitlines()[0]))
    assert trained == 9, "three branches in each of two folds and in the refit"
    assert without == 27
    assert is_drawn(tmp_path / "pipeline_grid_search.png")


def test_transfer_final_estimator(run: Run, tmp_path: Path) -> None:
    printed = run("transfer_final_estimator")
    assert "random" in printed
    for _, saved, *shares in percentages(printed, r"^ *[+-]0\.\d\d "):
        assert saved < 100
        assert sum(shares) == pytest.approx(100, abs=0.3)
    assert is_drawn(tmp_path / "transfer_final_estimator.png")


def test_timm_model(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install timm")
    printed = run("timm_model")
    assert "tapped: ['layer1', 'layer2', 'layer3']" in printed
    assert len(percentages(printed, r"^ *[+-]0\.\d\d ")) == 4
    assert is_drawn(tmp_path / "timm_model.png")


def test_timm_is_asked_for_where_it_is_absent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match="pip install timm"):
        run("timm_model")


@pytest.mark.parametrize("name", ["BERT", "ViT"])
def test_hugging_face_models(run: Run, name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install transformers")
    printed = run("hugging_face_models", "--only", name)
    assert f"{name}: tapped" in printed
    assert len(percentages(printed, r"^ +(plain model|cascade): ")) == 2
    assert is_drawn(tmp_path / "hugging_face_models.png")


def test_transformers_is_asked_for_where_it_is_absent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match="pip install transformers"):
        run("hugging_face_models")


def test_token_features(run: Run, tmp_path: Path) -> None:
    printed = run("token_features")
    assert "layer1: tokens of shape (16, 64)" in printed
    assert len(percentages(printed, r"^(gap|conv1d|prototype) ")) == 9
    assert is_drawn(tmp_path / "token_features.png")


def test_dataset_on_disk(run: Run, tmp_path: Path) -> None:
    printed = run("dataset_on_disk")
    assert "450 files to learn from, 100 to test" in printed
    rows = [line.split()[-2:] for line in printed.splitlines()[2:6]]
    # Computed once for the Dataset and once for the paths, and read ever after.
    assert [int(computed) for computed, _ in rows] == [450, 0, 450, 0]
    assert all(int(read) >= 450 for _, read in rows)
    assert is_drawn(tmp_path / "dataset_on_disk.png")


def test_budgeted_margin(run: Run, tmp_path: Path) -> None:
    printed = run("budgeted_margin")
    free, each, budget, plain = percentages(printed, r"^(lose|the same|save|plain)")
    assert free[-4] >= plain[-4] - 1
    assert each[-3] >= free[-3], "margins by branch are never dearer"
    assert budget[-3] >= 5
    assert is_drawn(tmp_path / "budgeted_margin.png")


def test_survivors_and_weights(run: Run, tmp_path: Path) -> None:
    printed = run("survivors_and_weights")
    assert len(re.findall(r"^(?:soft|hard|none) +block[123]", printed, re.M)) == 9
    shares = percentages(printed, r"^(block\d|last stage)")
    assert sum(share[0] for share in shares) == pytest.approx(100, abs=0.3)
    for name in ("depths", "thresholds", "weights"):
        assert is_drawn(tmp_path / f"survivors_{name}.png")


def test_small_model_first(run: Run, tmp_path: Path) -> None:
    printed = run("small_model_first")
    assert len(percentages(printed, r"^(large|small) alone ")) == 2
    rows = percentages(printed, r"^ *0\.\d\d\d ")
    assert len(rows) == 7
    assert all(saved < share <= 100 for _, saved, share in rows), "the small one costs"
    assert is_drawn(tmp_path / "small_model_first.png")


def test_tabular_cascade(run: Run, tmp_path: Path) -> None:
    printed = run("tabular_cascade")
    spent = re.findall(r"^  (?:logistic|small|boosted).* ([\d.]+)$", printed, re.M)
    assert len(spent) == 3
    assert all(float(milliseconds) > 0 for milliseconds in spent)
    rows = percentages(printed, r"^ *0\.\d\d\d ")
    assert len(rows) == 7
    assert all(sum(row[2:]) == pytest.approx(100, abs=0.3) for row in rows)
    assert is_drawn(tmp_path / "tabular_cascade.png")
