"""The documentation tells the truth: its code runs, its pages follow the package.

Python blocks run in the order in which a reader meets them, with warnings as errors.
Pages go on where the quickstart stops; the README, which assumes trained
weights and data, gets a few small images and random weights.
"""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import sk_calex
from tests.baselines._every_cascade import staged_is_vectorised
from tests.cascade.onnx._exported import skip_without_exporter

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Pages that need nothing but what a reader holds at the end of the quickstart.
AFTER_QUICKSTART = {
    "docs/guide/backbones.md",
    "docs/guide/branches.md",
    "docs/guide/calibration.md",
    "docs/guide/choose_settings.md",
    "docs/guide/deploy.md",
    "docs/guide/feature_store.md",
    "docs/howto/compute_features_once.md",
    "docs/howto/use_your_own_model.md",
    "docs/howto/set_thresholds.md",
    "docs/howto/train_with_weights.md",
    "docs/howto/save_and_load.md",
    "docs/howto/see_what_ran.md",
    "docs/howto/write_your_own_method.md",
    "docs/guide/guarantees.md",
    "docs/guide/inspection.md",
    "docs/guide/operating_point.md",
}
RUN_HERE = AFTER_QUICKSTART | {
    "CONTRIBUTING.md",
    "README.md",
    "docs/guide/baselines.md",
    "docs/guide/exit_rules.md",
    "docs/quickstart.md",
    "docs/guide/scaling_out.md",
    "docs/howto/export_onnx.md",
}


def load(name: str) -> ModuleType:
    """Import one of the documentation's hooks, or skip without the tools it needs."""
    reason = "the tools of the documentation are not installed: see the extra 'docs'"
    for tool in {"api_pages": ["mkdocs"], "link_names": ["griffe"]}.get(name, []):
        pytest.importorskip(tool, reason=reason)
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path) -> list[tuple[int, str]]:
    """Give the Python blocks of a page, each with its first line number."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start(1)), found[1])
        for found in PYTHON_BLOCK.finditer(text)
    ]


def run(page: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run a page's blocks; a traceback shows the page and the line."""
    for line, source in blocks(ROOT / page):
        exec(compile("\n" * line + source, str(ROOT / page), "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give what a reader's session holds at the end of the quickstart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("quickstart"))
        return run("docs/quickstart.md", {"folder": Path.cwd()})


def test_quickstart(quickstart: dict[str, Any]) -> None:
    assert (quickstart["folder"] / "curve.svg").stat().st_size > 0
    # What the page claims to show: a backbone that works and a curve that is not flat.
    assert quickstart["cascade"].score(quickstart["X_test"], quickstart["y_test"]) > 0.5
    assert len(set(quickstart["curve"].flops_reduction)) > 1


def test_quickstart_draws_all_weights_from_its_seed() -> None:
    """Its outputs, and those of all pages after it, come out the same again."""
    _, source = blocks(DOCS / "quickstart.md")[0]
    before_training = source.partition("epochs, steps =")[0]
    states = []
    for earlier in (1, 2):  # whatever the session has drawn before
        names: dict[str, Any] = {}
        torch.manual_seed(earlier)
        exec(before_training, names)
        states.append(names["model"].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("page", sorted(AFTER_QUICKSTART))
def test_page_after_the_quickstart(
    page: str,
    quickstart: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each page runs by itself, and leaves what the next one builds on as it was."""
    monkeypatch.chdir(tmp_path)
    cascade, margin = quickstart["cascade"], quickstart["cascade"].margin
    run(page, dict(quickstart))
    plt.close("all")
    assert cascade.calibrator is None
    cascade.set_margin(margin)


def test_export_to_onnx(
    quickstart: dict[str, Any],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without_exporter()
    monkeypatch.chdir(tmp_path)
    names = run("docs/howto/export_onnx.md", dict(quickstart))
    shares = re.findall(r"same labels: ([\d.]+)", capsys.readouterr().out)
    assert float(shares[0]) > 0.99
    plain = quickstart["cascade"].predict(quickstart["X_test"])
    assert np.mean(names["small"].predict(quickstart["X_test"]) == plain) > 0.9


def test_exit_rules(
    quickstart: dict[str, Any],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("docs/guide/exit_rules.md", dict(quickstart))
    assert len(set(names["curve"].flops_reduction)) > 1
    printed = re.findall(r"accuracy ([\d.]+), cost", capsys.readouterr().out)
    assert len(printed) == 5
    assert printed[-1] == max(printed), "a rule beats the limit"
    assert set(np.unique(names["labels"][names["depth"] < 2])) <= {0, 1}
    assert names["cascade"].calibrator is None


def test_scale_out(
    quickstart: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: see the extra 'distributed'"
    )
    monkeypatch.chdir(tmp_path)
    X, y = quickstart["X_test"][:200], quickstart["y_test"][:200]
    paths = [tmp_path / f"{i}.png" for i in range(len(X))]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address=":0",
    ) as cluster:
        names = {"paths": paths, "y": y, "scheduler": cluster.scheduler_address}
        names = run("docs/guide/scaling_out.md", quickstart | names)
    assert names["search"].score(paths, y) > 0.5


def test_baselines(
    quickstart: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("docs/guide/baselines.md", dict(quickstart))
    # The page compares methods that work, each at more than one cost.
    for method, values in names["methods"]:
        curve = names["operating_curve"](
            method, names["test_features"], names["y_test"], values
        )
        assert curve.accuracy.max() > 0.5
        assert len(set(curve.flops_reduction)) > 1


def test_contributing() -> None:
    """The method in one file works: also staged, on images that leave one by one."""
    names = run("CONTRIBUTING.md", {})
    assert names["depth"].shape == (500,)
    assert (np.diff(names["curve"].flops_reduction) >= 0).all()
    staged_is_vectorised(partial(names["ImitatingCascade"], random_state=0), 0.9)


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    y = np.tile(np.arange(10), 7)
    X = np.random.default_rng(0).integers(0, 256, (len(y), 3, 8, 8), dtype=np.uint8)
    names = run(
        "README.md",
        {
            "X_train": X[:50],
            "y_train": y[:50],
            "X_test": X[50:],
            "y_test": y[50:],
            "state_dict": resnet18(num_classes=10).state_dict(),
        },
    )
    assert names["labels"].shape == names["depth"].shape == (20,)


def test_no_page_with_code_is_forgotten() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    with_code = {str(page.relative_to(ROOT)) for page in pages if blocks(page)}
    assert with_code == RUN_HERE


def test_readme_shows_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert '\npython -m pip install -e ".[test]" && python -m pytest\n' in readme
    plot = '\npython -m pip install -e ".[plot]" && python examples/quickstart.py\n'
    assert plot in readme


def test_every_public_name_has_one_place_in_the_api_pages() -> None:
    hook = load("api_pages")
    text = "\n".join(hook.build_pages().values())
    shown = [line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", text, re.M)]
    expected = [
        name
        for package in hook.PACKAGES
        for names in hook.public_names(package).values()
        for name in names
    ]
    assert sorted(shown) == sorted(set(expected))
    public = set(getattr(sk_calex, "__all__", ())) - {"__version__"}
    assert public <= set(shown)


def test_api_pages_come_in_an_order_of_use() -> None:
    pages = [page for page in load("api_pages").build_pages() if "index" not in page]
    assert pages[:3] == ["api/backbone.md", "api/cascade.md", "api/model_selection.md"]
    assert set(load("api_pages").ORDER) >= {Path(page).stem for page in pages}


def test_names_in_docstrings_are_linked() -> None:
    hook = load("link_names")
    text = (
        "Draw. See `exit_report`, `nothing_public` and ``CascadeClassifier``.\n\n"
        "See Also\n--------\nmargin_curve, sklearn.base.clone : Costs, in one\n"
        "    sweep of `CascadeDisplay`.\npareto_front\n\nExamples\n--------\n"
        ">>> `exit_report`\n"
    )
    home = "sk_calex.model_selection._curves"
    found = hook.linked(text, "CascadeDisplay")
    assert "See [`exit_report`][sk_calex.inspection._reports.exit_report]," in found
    assert "`nothing_public` and ``CascadeClassifier``." in found
    assert f"- [`margin_curve`][{home}.margin_curve], `sklearn.base.clone`" in found
    assert "  sweep of `CascadeDisplay`." in found
    assert "\n- [`pareto_front`][" in found
    assert found.endswith(">>> `exit_report`\n")


def test_imports_point_one_way() -> None:
    """Each folder imports only from folders below it in the architecture's table."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| `(\w+)` \|", page, re.M)
    graph = load("import_graph").imports()
    assert set(graph) == set(order)
    upward = {
        f"{part} imports {other}"
        for part, others in graph.items()
        for other in others
        if order.index(other) < order.index(part)
    }
    assert not upward
    assert len(order) == 11, "the twelfth entry is the package's own __init__"
    assert len(load("import_graph").floors(graph)) <= 8


def test_files_import_each_other_in_no_circle() -> None:
    """Whoever reads a file can read first what it builds on, inside a folder too."""
    hook = load("import_graph")
    graph = hook.file_imports()
    assert "sk_calex.utils._html" in graph["sk_calex.cascade._summary"]
    assert not hook.circles(graph)


def test_no_file_imports_its_own_folder() -> None:
    """A file imports its neighbours by their names: through __init__ is a detour."""
    graph = load("import_graph").file_imports()
    assert not [
        f"{name} imports its own folder"
        for name, found in graph.items()
        if name.rpartition(".")[0] in found
    ]


def test_import_graph_sees_through_helpers(tmp_path: Path) -> None:
    hook = load("import_graph")
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from pack.top import x")
    (package / "base.py").write_text("import os")
    (package / "_help.py").write_text("from .base import x")
    (package / "sub" / "__init__.py").write_text("from pack._help import x")
    (package / "sub" / "deep.py").write_text("def f():\n    from ..base import x")
    (package / "top.py").write_text("import pack.base\nfrom pack import sub")
    graph = hook.imports(package)
    assert graph == {"base": set(), "sub": {"base"}, "top": {"base", "sub"}}
    assert hook.reduced(graph) == {"base": set(), "sub": {"base"}, "top": {"sub"}}
    assert hook.floors(graph) == [["top"], ["sub"], ["base"]]
    drawn = ET.fromstring(hook.drawing(graph))
    assert [text.text for text in drawn.iter("text")] == ["base", "sub", "top"]
    arrows = [path for path in drawn.iter("path") if "C" in path.get("d", "")]
    assert len(arrows) == 2  # top over sub to base; the third follows


def test_circles_between_files_are_found(tmp_path: Path) -> None:
    hook = load("import_graph")
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from pack.sub import x")
    (package / "sub" / "__init__.py").write_text("from ._one import x")
    (package / "sub" / "_one.py").write_text("def f():\n    from ._two import y")
    (package / "sub" / "_two.py").write_text("from pack.sub._one import x")
    graph = hook.file_imports(package)
    assert graph == {
        "pack": {"pack.sub"},
        "pack.sub": {"pack.sub._one"},
        "pack.sub._one": {"pack.sub._two"},
        "pack.sub._two": {"pack.sub._one"},
    }
    assert hook.circles(graph) == [["pack.sub._one", "pack.sub._two"]]
    assert hook.circles({"a": {"b"}, "b": set()}) == []
