"""The benchmark of the front: points are frozen before test labels are read."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.model_selection import PredefinedSplit
from sklearn.utils import Bunch

from sk_calex import BranchClassifier, CascadeClassifier, TapLayout
from sk_calex.backbone._layout import FeatureArray

pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import _front_fits
import _front_judge
import _front_tasks
import front

N_CLASSES, N_BRANCHES = 3, 3


def a_task(seed=0, n=(240, 120, 150)):
    """Draw three taps and logits of three classes, each tap clearer than the last."""
    rng = np.random.default_rng(seed)
    y = rng.integers(N_CLASSES, size=sum(n))
    shapes = ((3, 4, 4),) * N_BRANCHES
    blocks = [
        np.repeat(np.eye(N_CLASSES)[y], 16, axis=1) * clear
        + rng.normal(size=(len(y), 48)) * 2
        for clear in (0.6, 1.0, 1.4)
    ]
    logits = 4 * np.eye(N_CLASSES)[y] + rng.normal(size=(len(y), N_CLASSES)) * 2
    layout = TapLayout(
        ("a", "b", "c"), shapes, N_CLASSES, stage_macs=(40_000, 40_000, 40_000, 40_000)
    )
    X = FeatureArray.wrap(np.column_stack([*blocks, logits]).astype(np.float32), layout)
    known = n[0] + n[1]
    fold = np.r_[np.full(n[0], -1), np.zeros(n[1], int)]
    return _front_tasks.Task(
        X[:known],
        y[:known],
        PredefinedSplit(fold),
        X[known:],
        _front_tasks.TestLabels(y[known:]),
    )


@pytest.fixture
def task():
    return a_task()


@pytest.fixture
def quick(monkeypatch):
    """Few epochs, narrow heads and three values of every knob."""
    monkeypatch.setattr(_front_fits, "LARGE", _front_fits.Budget((4, 4), 2))
    monkeypatch.setattr(_front_fits, "DEFAULT_TAPS", (0, 2))
    for name in ("LOCAL", "STOPPING", "QUOTA", "SHARED", "OWN_GATE"):
        variant = getattr(front, name)
        few = _front_judge.Variant(variant.rule, variant.values[2::8])
        monkeypatch.setattr(front, name, few)
    monkeypatch.setattr(front, "PRECISION_MARGINS", np.array([-0.2, 0.0, 0.3]))
    # A search for the knob, in every variant, is what takes the time.
    monkeypatch.setattr(front, "found", lambda variant: variant)
    together = front.together
    monkeypatch.setattr(front, "together", lambda variant, **_: together(variant))


def random_fit(seed=0, n=(90, 60)):
    """Draw answers of three branches and a last stage, and labels they are right of."""
    rng = np.random.default_rng(seed)
    parts, labels = [], []
    for size in n:
        y = rng.integers(N_CLASSES, size=size)
        logits = rng.normal(size=(N_BRANCHES + 1, size, N_CLASSES))
        logits[:, np.arange(size), y] += np.linspace(0.5, 3, N_BRANCHES + 1)[:, None]
        proba = np.exp(logits)
        proba /= proba.sum(axis=2, keepdims=True)
        parts.append(_front_fits.Answers(proba))
        labels.append(y)
    stages, heads = np.full(N_BRANCHES + 1, 100.0), np.full(N_BRANCHES, 5.0)
    return _front_fits.Fit(*parts, stages, heads, 1.0), *labels


def a_variant(**settings):
    values = np.array([0.0, 0.05, 0.2, 0.8])
    return _front_judge.Variant(front.STOPPING.rule, values, ensemble=True, **settings)


def test_test_labels_are_not_read_before_the_points_are_frozen():
    sealed = _front_tasks.TestLabels(np.array([0, 1]))
    with pytest.raises(RuntimeError, match="before the operating points"):
        sealed.read()
    sealed.freeze("some points")
    np.testing.assert_array_equal(sealed.read(), [0, 1])
    with pytest.raises(RuntimeError, match="other operating points"):
        sealed.freeze("better points")


def test_judge_freezes_the_points_and_then_reads_the_test_labels_once():
    events = []

    class Watched(_front_tasks.TestLabels):
        def freeze(self, points):
            events.append("freeze")
            super().freeze(points)

        def read(self):
            events.append("read")
            return super().read()

    fit, y, truth = random_fit()
    variants = {"a": (a_variant(has_auto=True), fit)}
    record = _front_judge.judge(variants, y, Watched(truth), seed=0)
    assert events == ["freeze", "read"]
    assert set(record["a"]) >= {"test_at_cuts", "validation_at_cuts", "aims", "auto"}


def test_the_points_do_not_depend_on_the_test_labels():
    fit, y, truth = random_fit()
    frozen = []
    for labels in (truth, (truth + 1) % N_CLASSES):
        sealed = _front_tasks.TestLabels(labels)
        _front_judge.judge({"a": (a_variant(), fit)}, y, sealed, seed=0)
        frozen.append(sealed._frozen)
    assert frozen[0] == frozen[1]


def test_a_cut_mixes_two_neighbours_so_that_exactly_so_much_is_saved():
    codes = np.array([[0, 0, 0, 0], [0, 0, 1, 1]], dtype=np.int16)
    cost = np.array([[0.8] * 4, [0.4] * 4])
    path = _front_judge.Path(codes, cost, np.zeros(4, dtype=np.int16))
    points = _front_judge.choose(path, np.zeros(4, dtype=int), path)
    first, second, share = points["cuts"][_front_judge.CUTS.index(0.5)]
    assert path.saved[first] * (1 - share) + path.saved[second] * share == (
        pytest.approx(0.5)
    )
    assert points["cuts"][_front_judge.CUTS.index(0.7)] is None
    # From the plain backbone, which saves nothing, to the strictest value.
    first, second, share = _front_judge._mixture(0.1, np.array([0, 1]), path.saved)
    assert (first, second, share) == (-1, 0, pytest.approx(0.5))


def test_an_aim_takes_what_saves_most_within_the_validated_loss():
    y = np.zeros(200, dtype=int)
    plain = np.zeros(200, dtype=np.int16)
    codes = np.tile(plain, (3, 1))
    codes[1, :1] = codes[2, :4] = 1  # half a point lost, then two
    cost = np.repeat([[0.9], [0.6], [0.3]], 200, axis=1)
    path = _front_judge.Path(codes, cost, plain)
    aims = _front_judge.choose(path, y, path)["aims"]
    assert (aims["0.0"], aims["0.005"], aims["0.01"]) == (0, 1, 1)
    assert aims["0.005+se"] == 0  # one row lost of 200 is half a point within one error


def test_recipe_is_the_cascade_with_labels_on_its_late_branches(task, quick, tmp_path):
    soft, labels = (
        _front_fits.fit_or_read(lambda: task, "a", name, 0, tmp_path)
        for name in ("soft", "labels")
    )
    late = soft.with_branches(labels, range(N_BRANCHES // 2, N_BRANCHES))
    training = _front_fits.LARGE.training
    branch = BranchClassifier("conv", head_params={"widths": (4, 4)}, **training)
    cascade = CascadeClassifier(
        branch=branch,
        alignment="none",
        alpha=[0.5, 0.0, 0.0],
        margin=0.0,
        cv=task.split,
        input="features",
        random_state=0,
    ).fit(task.X, task.y)
    np.testing.assert_allclose(
        late.test.proba, cascade.stage_probabilities(task.test_X), atol=1e-6
    )
    np.testing.assert_allclose(late.heads, cascade._branch_macs())


def test_every_method_gives_a_cell_and_is_trained_once(task, quick, tmp_path):
    cells = [
        front.run("a", lambda: task, method, 0, tmp_path) for method in front.METHODS
    ]
    names = {name for cell in cells for name in cell["variants"]}
    result = front.summary(cells)["a"]
    assert set(result) - names == set(front.CHOICES)
    assert set(result) >= {front.RECIPE, front.DEFAULTS, *front.BASELINES}
    assert result["BoostNet"]["seeds"] == [0]
    lead = result[front.RECIPE]["ahead_by"]["BoostNet"]["mean"]
    accuracies = (
        result[name]["test_at_cuts"]["mean"] for name in (front.RECIPE, "BoostNet")
    )
    for difference, mine, theirs in zip(lead, *accuracies, strict=True):
        assert difference is None or difference == pytest.approx(
            mine - theirs, abs=1e-4
        )
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    front.run("a", pytest.fail, "boostnet", 0, tmp_path)  # reads no feature
    assert trained == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_a_task_without_its_weights_says_what_is_missing():
    with pytest.raises(FileNotFoundError, match="train_backbone"):
        front.load_task("resnet50", "cache")


def test_a_trained_network_is_a_task_that_says_how_it_was_trained(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import train_backbone

    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(60, 3, 32, 32), dtype=np.uint8)
    y, held = np.arange(60) % 20, np.arange(40, 60)
    known = Bunch(data=images, target=y, train=np.arange(40), val=held)
    test = Bunch(data=images[:20], target=y[:20])
    monkeypatch.setattr(_front_tasks, "cifar_splits", lambda: (known, test, None))
    module = train_backbone.small_image_resnet("resnet10", 20)
    save_file(module.state_dict(), tmp_path / "tiny.safetensors")
    told = {
        "settings": {"arch": "resnet10", "epochs": 3},
        "seconds": 12.5,
        "accuracy": {"test": 0.4},
        "torch": "2",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "validation_rows": held.tolist(),
    }
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(told))
    task = _front_tasks.trained_network(str(tmp_path), path, ("layer1.0", "layer3.0"))
    said = ("settings", "seconds", "accuracy")
    assert task.settings["network"] == {key: told[key] for key in said}
    assert task.settings["rows"] == {"train": 40, "calibration": 20, "test": 20}
    with torch.inference_mode():
        x = (torch.from_numpy(images[:20]).float() / 255 - 0.5) / 0.25
        expected = module.eval()(x).numpy()
    np.testing.assert_allclose(
        np.asarray(task.test_X)[:, -20:].astype(np.float32), expected, atol=0.02
    )
    told["validation_rows"] = [0, *held.tolist()]
    path.write_text(json.dumps(told))
    with pytest.raises(SystemExit, match="trained on rows that validate here"):
        _front_tasks.trained_network(str(tmp_path), path, ("layer1.0",))


@pytest.mark.parametrize(("branch", "factor"), [(0, 3.0), (1, 3.0), (1, 0.0)])
def test_labels_teach_the_branches_that_then_add_more(branch, factor):
    """One branch gives the true class more, or knows nothing; the others are equal."""
    soft, y, _ = random_fit(n=(400, 60))
    proba = soft.calibration.proba.copy()
    if factor:
        proba[branch, np.arange(len(y)), y] *= factor
        proba[branch] /= proba[branch].sum(axis=1, keepdims=True)
    else:
        proba[branch] = 1 / N_CLASSES
    labels = soft._replace(calibration=_front_fits.Answers(proba))
    expected = [branch] if factor else []
    assert front.alphas_by_validation(soft, labels, y) == expected


def test_a_record_goes_on_with_newer_tasks_and_no_other_change():
    now = front.settings()
    budgets = {name: now["budgets"][name] for name in ("transfer", "resnet50")}
    older = now | {"budgets": budgets}
    assert front.goes_on({"settings": older})
    longer = budgets | {"transfer": budgets["transfer"] | {"max_iter": 99}}
    assert not front.goes_on({"settings": now | {"budgets": longer}})
    assert not front.goes_on({"settings": older | {"folds": 7}})
    gone = budgets | {"another": budgets["transfer"]}
    assert not front.goes_on({"settings": now | {"budgets": gone}})


def test_what_validation_prefers_is_reported_on_test():
    aims = {"0.0": {"saved": 0.1, "lost": 0.0, "validated_saved": 0.1}}
    first = {
        "plain": 0.7,
        "validation_at_cuts": [0.8, 0.6, None],
        "test_at_cuts": [0.7, 0.5, None],
        "aims": aims,
    }
    second = {
        "plain": 0.7,
        "validation_at_cuts": [0.7, 0.7, 0.4],
        "test_at_cuts": [0.9, 0.6, 0.3],
        "aims": {"0.0": {"saved": 0.3, "lost": 0.1, "validated_saved": 0.2}},
    }
    chosen = front.chosen_by_validation([first, second])
    assert chosen["validation_at_cuts"] == [0.8, 0.7, 0.4]
    assert chosen["test_at_cuts"] == [0.7, 0.6, 0.3]  # not the best there
    assert chosen["aims"]["0.0"]["saved"] == 0.3
    assert chosen["plain"] == 0.7
