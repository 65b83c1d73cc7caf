"""Saved estimators answer as before, in other processes too, or are refused."""

import contextlib
import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

import sk_calex
from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    ExitMonitor,
    ExitRiskController,
    FrozenBackbone,
    PrototypePoolingClassifier,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
)
from sk_calex import baselines as methods
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from sk_calex.utils._checked_folder import digest_of_json
from sk_calex.utils._codec import CannotSaveError
from tests._cascade_models import images, small_branch, tiny_backbone, tiny_net
from tests._models import TinyNet

X, Y = images(150)
Z, _ = images(40, seed=1)
QUICK = {"random_state": 0, "device": "cpu"}

skops = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("skops"),
    reason="skops is not installed: see the extra 'save'",
)


def there_and_back(estimator, folder, backbone=None, **params):
    estimator.save(folder)
    return sk_calex.load(folder, backbone, **params)


def same_answers(a, b):
    np.testing.assert_array_equal(a.classes_, b.classes_)
    np.testing.assert_array_equal(a.predict_proba(Z), b.predict_proba(Z))
    np.testing.assert_array_equal(a.exit_depth(Z), b.exit_depth(Z))
    np.testing.assert_array_equal(a.depth_costs_, b.depth_costs_)


def cascade(**params):
    own = {} if "calibrator" in params else {"margin": 0.05}
    params = {"branch": small_branch(), "random_state": 0} | own | params
    return CascadeClassifier(tiny_backbone(), **params)


@pytest.fixture(scope="module")
def fitted():
    return cascade().fit(X, Y)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ensemble": True},
        {"calibrator": SurvivorThresholdCalibrator(margin_mode="relative")},
        {"calibrator": SharedThreshold(0.6), "alignment": "none"},
        {"calibrator": Quota(0.5)},
        {"calibrator": Patience(1)},
        {"calibrator": EntropyThreshold(0.5)},
        {"calibrator": RegretPriced(0.2)},
        pytest.param({"calibrator": LearnedGate(0.7)}, marks=skops),
        pytest.param({"calibrator": OptimalStopping(0.2)}, marks=skops),
        {"alignment": SurvivorAlignment(mixture=0.2), "margin": [0.1, 0.2]},
    ],
    ids=repr,
)
def test_cascade_answers_as_before(params, tmp_path):
    given = cascade(**params).fit(X, Y)
    found = there_and_back(given, tmp_path / "saved", tiny_net())
    same_answers(given, found)
    assert repr(found.calibrator_) == repr(given.calibrator_)
    np.testing.assert_array_equal(found.thresholds_, given.thresholds_)


@pytest.mark.parametrize("name", methods.__all__)
def test_baseline_answers_as_before(name, tmp_path):
    method = getattr(methods, name)
    if name in ("JointCascade", "ExitNet"):
        pytest.skip("a base class")
    params = {"random_state": 0}
    if "max_iter" in method().get_params():
        params |= {"max_iter": 3}
    else:
        params |= {"branch": small_branch()}
    given = method(tiny_backbone(), **params).fit(X, Y)
    same_answers(given, there_and_back(given, tmp_path / "saved", tiny_net()))


@pytest.mark.parametrize(
    "branch",
    [
        BranchClassifier("gap", **QUICK),
        BranchClassifier("conv1d", feature_shape=(3, 256), max_iter=2, **QUICK),
        PrototypePoolingClassifier(feature_shape=(3, 16, 16), max_iter=2, **QUICK),
    ],
    ids=repr,
)
@pytest.mark.parametrize("labels", [np.array(["cat", "dog", "owl"]), np.arange(3)])
def test_branch_answers_as_before(branch, labels, tmp_path):
    flat = X.reshape(len(X), -1)
    branch.fit(flat, labels[Y])
    found = there_and_back(branch, tmp_path / "saved")
    np.testing.assert_array_equal(found.predict(flat), branch.predict(flat))
    np.testing.assert_array_equal(found.predict_proba(flat), branch.predict_proba(flat))
    assert found.macs_ == branch.macs_


@skops
@pytest.mark.parametrize("labels", [["a", "b", "c"], [5, 7, 9]])
def test_branches_of_scikit_learn_answer_as_before(labels, tmp_path):
    flat, other = X.reshape(len(X), -1), Z.reshape(len(Z), -1)
    given = CascadeClassifier(branch=LogisticRegression(), margin=0.05, random_state=0)
    given.fit(flat, np.array(labels)[Y])
    found = there_and_back(given, tmp_path / "saved")
    np.testing.assert_array_equal(found.predict(other), given.predict(other))
    np.testing.assert_array_equal(
        found.predict_proba(other), given.predict_proba(other)
    )


def test_features_instead_of_samples(tmp_path):
    features = tiny_backbone().fit(X).transform(X)
    given = CascadeClassifier(
        branch=small_branch(), input="features", margin=0.05, random_state=0
    ).fit(features, Y)
    found = there_and_back(given, tmp_path / "saved")
    np.testing.assert_array_equal(found.predict(features), given.predict(features))
    np.testing.assert_array_equal(found.cost(features), given.cost(features))


def test_fitted_backbone_transforms_as_before(tmp_path):
    given = tiny_backbone().fit(X)
    found = there_and_back(given, tmp_path / "saved", tiny_net())
    np.testing.assert_array_equal(found.transform(Z), given.transform(Z))
    assert found.fingerprint_ == given.fingerprint_


@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: FrozenEstimator(b), lambda b: b.module]
)
def test_backbone_may_be_given_in_each_form(fitted, wrap, tmp_path):
    given = wrap(tiny_backbone())
    same_answers(fitted, there_and_back(fitted, tmp_path / "saved", given))


def test_preprocess_comes_with_the_backbone(tmp_path):
    def halved(x):
        return x / 2

    backbone = FrozenBackbone(tiny_net(), ["stem"], preprocess=halved, device="cpu")
    given = CascadeClassifier(
        backbone, branch=small_branch(), margin=0.05, random_state=0
    )
    given.fit(X, Y).save(tmp_path / "saved")
    same_answers(given, sk_calex.load(tmp_path / "saved", backbone))
    with pytest.raises(ValueError, match=r"another network.*preprocess"):
        sk_calex.load(tmp_path / "saved", tiny_net())


def untrained_net():
    """The code and settings of `tiny_net`, with other weights."""
    net = TinyNet(3, seed=7)
    for norm in (net.stem[1], net.block1[1], net.block2[1]):
        norm.momentum = 1.0
    return net


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_embedded_weights_are_loaded_into_a_copy(fitted, device, tmp_path):
    """The caller's network may hold any weights, or none, and keeps them."""
    fitted.save(tmp_path / "saved", embed_backbone=True)
    with torch.device(device):
        fresh = untrained_net()
    before = {name: t.clone() for name, t in fresh.state_dict().items()}
    found = sk_calex.load(tmp_path / "saved", fresh)
    same_answers(fitted, found)
    assert found.backbone_.fingerprint_ == fitted.backbone_.fingerprint_
    assert found.backbone_.module is not fresh
    for name, tensor in fresh.state_dict().items():
        assert tensor.device == before[name].device
        assert device == "meta" or torch.equal(tensor, before[name])


def test_embedded_weights_are_saved_again_and_counted_in_digests(fitted, tmp_path):
    fitted.save(tmp_path / "one", embed_backbone=True)
    found = sk_calex.load(tmp_path / "one", untrained_net())
    found.save(tmp_path / "two", embed_backbone=True)
    one, two = (tmp_path / name / "tensors.safetensors" for name in ("one", "two"))
    assert one.stat().st_size == two.stat().st_size
    fitted.save(tmp_path / "without")
    without = (tmp_path / "without" / one.name).stat().st_size
    n_bytes = sum(t.nbytes for t in tiny_net().state_dict().values())
    assert one.stat().st_size >= without + n_bytes


def test_embedded_weights_of_another_network_are_refused(fitted, tmp_path):
    fitted.save(tmp_path / "saved", embed_backbone=True)
    with pytest.raises(ValueError, match=r"weights of a TinyNet, which do not fit"):
        sk_calex.load(tmp_path / "saved", TinyNet(3, width=5))
    net = TinyNet(3)
    net.stem[2] = torch.nn.GELU()  # the same weights, another function of them
    with pytest.raises(ValueError, match="another network than the TinyNet"):
        sk_calex.load(tmp_path / "saved", net)


def test_nothing_to_embed_is_said(tmp_path):
    flat = X.reshape(len(X), -1)[:, :9]
    given = CascadeClassifier(branch=small_branch("gap"), random_state=0).fit(flat, Y)
    with pytest.raises(ValueError, match="this CascadeClassifier holds no network"):
        given.save(tmp_path / "saved", embed_backbone=True)
    assert not (tmp_path / "saved").exists()


def test_loaded_cascade_moves_and_is_saved_again(fitted, tmp_path):
    found = there_and_back(fitted, tmp_path / "one", tiny_net())
    found.set_margin(0.2)
    again = there_and_back(found, tmp_path / "two", tiny_net())
    same_answers(found, again)
    np.testing.assert_array_equal(
        found.thresholds_, copy.deepcopy(fitted).set_margin(0.2).thresholds_
    )
    assert again.margin == 0.2


def test_loaded_cascade_can_be_fitted_again(fitted, tmp_path):
    found = there_and_back(fitted, tmp_path / "saved", tiny_net())
    np.testing.assert_allclose(
        found.fit(X, Y).predict_proba(Z), fitted.predict_proba(Z), atol=1e-5
    )


def test_another_process_answers_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    np.save(tmp_path / "z.npy", Z)
    # Weights computed anew there could differ in their last bits.
    save_file(fitted.backbone.module.state_dict(), tmp_path / "net.safetensors")
    script = (
        "import sys, numpy as np, sk_calex\n"
        "from safetensors.torch import load_file\n"
        "from tests._cascade_models import tiny_net\n"
        "folder = sys.argv[1]\n"
        "net = tiny_net()\n"
        "net.load_state_dict(load_file(folder + '/net.safetensors'))\n"
        "found = sk_calex.load(folder + '/saved', net)\n"
        "proba = found.predict_proba(np.load(folder + '/z.npy'))\n"
        "np.save(folder + '/proba.npy', proba)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "proba.npy"), fitted.predict_proba(Z), atol=1e-6
    )


# The heads of so small a network cost more than they save; the state is what counts.
@pytest.mark.filterwarnings("ignore:nothing that saves FLOPs:UserWarning")
def test_certificate_comes_back(fitted, tmp_path):
    new, labels = images(400, seed=5)
    given = ExitRiskController(fitted, max_risk=0.3).fit(new, labels)
    found = there_and_back(given, tmp_path / "saved", tiny_net())
    np.testing.assert_array_equal(found.predict(Z), given.predict(Z))
    assert found.report() == given.report()
    assert repr(found.path_results_) == repr(given.path_results_)
    assert given.report().splitlines()[0] in (tmp_path / "saved/README.md").read_text()


@pytest.mark.parametrize("wrap", [lambda c: c, FrozenEstimator])
def test_monitor_goes_on_where_it_was(fitted, wrap, tmp_path):
    given = ExitMonitor(wrap(fitted), random_state=0).fit(images(100, seed=6)[0])
    given.update(Z)
    found = there_and_back(given, tmp_path / "saved", tiny_net())
    assert found.n_seen_ == given.n_seen_
    given.update(Z)
    found.update(Z)
    np.testing.assert_array_equal(found.statistic_, given.statistic_)


# -- refusals --------------------------------------------------------------------------


def test_unfitted_estimator_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        cascade().save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_class_of_the_user_is_not_saved(fitted, tmp_path):
    class Mine(CascadeClassifier):
        pass

    own = Mine(tiny_backbone(), branch=small_branch(), random_state=0).fit(X, Y)
    with pytest.raises((CannotSaveError, ImportError), match="Mine"):
        own.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("given", [None, 3, "resnet18"])
def test_missing_backbone_is_named(fitted, given, tmp_path):
    fitted.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"backbone=.*TinyNet.*Give the torch module"):
        sk_calex.load(tmp_path / "saved", given)


def test_another_backbone_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    other = copy.deepcopy(tiny_net())
    with torch.no_grad():
        other.head[2].bias[0] += 1e-3
    with pytest.raises(ValueError, match="another network than the TinyNet"):
        sk_calex.load(tmp_path / "saved", other)


def test_later_schema_says_who_wrote_it(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    change_manifest(tmp_path / "saved", lambda m: m.update(schema=99))
    with pytest.raises(ValueError, match=r"schema 99 by sk_calex .*Update"):
        sk_calex.load(tmp_path / "saved", tiny_net())


def test_kind_must_be_that_of_the_content(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    change_manifest(tmp_path / "saved", lambda m: m.update(kind="ZTWClassifier"))
    with pytest.raises(ValueError, match="its manifest says 'ZTWClassifier'"):
        sk_calex.load(tmp_path / "saved", tiny_net())


def change_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("digest")
    manifest["digest"] = digest_of_json(manifest)
    path.write_text(json.dumps(manifest))


def nodes(value, path=()):
    """Places of all values in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, dict | list):
            yield from nodes(part, (*path, key))
        else:
            yield (*path, key)


def test_forged_content_gives_an_estimator_or_an_error_that_names_the_folder(
    fitted, tmp_path
):
    """Digests that fit: who can write to the folder can compute them."""
    folder = tmp_path / "saved"
    fitted.save(folder)
    sound = json.loads((folder / "manifest.json").read_text())
    places = [place for place in nodes(sound["content"]) if place]
    rng = np.random.default_rng(0)
    wrong = [None, -1, 10**6, "x", [], {}, {"~": "float", "value": "nan"}, [[]], True]
    n_refused = 0
    for _ in range(200):
        place = places[rng.integers(len(places))]

        def change(manifest, place=place):
            inside = manifest["content"]
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = wrong[rng.integers(len(wrong))]

        change_manifest(folder, change)
        found = None
        with contextlib.suppress(ValueError):
            found = sk_calex.load(folder, tiny_net())
        n_refused += found is None
        assert found is None or isinstance(found, CascadeClassifier)
        (folder / "manifest.json").write_text(json.dumps(sound))
    assert n_refused > 50


# -- the card --------------------------------------------------------------------------


def test_card_tells_what_was_measured(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    header, _, text = card.partition("\n---\n")
    assert header.startswith("---\nlibrary_name: sk_calex\n")
    depth = fitted.calibrator_.depth(fitted.calibration_.answers)
    right = fitted.calibration_.right[depth, np.arange(len(depth))].mean()
    assert f"| accuracy of the cascade | {right:.2%} |" in text
    assert "| FLOPs saved, heads counted |" in text
    assert "estimates, not promises" in text
