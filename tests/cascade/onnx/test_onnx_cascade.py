"""What was exported answers as the cascade did: without torch, batch by batch."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from sk_calex import ExitMonitor, OnnxCascade
from tests._cascade_models import images
from tests.cascade.onnx._exported import Z, answers_alike, rewrite


def test_exported_cascade_answers_alike(exported):
    cascade, folder = exported
    depth = answers_alike(OnnxCascade(folder), cascade)
    assert set(depth) == {0, 1, 2}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_answers_do_not_depend_on_the_batches(exported, size):
    folder = exported[1]
    whole = OnnxCascade(folder).stage_probabilities(Z)
    served = OnnxCascade(folder, batch_size=size, n_threads=1)
    np.testing.assert_allclose(served.stage_probabilities(Z), whole, rtol=0, atol=1e-6)
    alone = np.concatenate([served.exit_depth(z[None]) for z in Z])
    np.testing.assert_array_equal(alone, served.exit_depth(Z))


def test_only_survivors_go_on(exported, monkeypatch):
    served = OnnxCascade(exported[1])
    sizes = []
    for graph in served._engine._stages:
        run = graph.run
        monkeypatch.setattr(
            graph,
            "run",
            lambda values, run=run, graph=graph: (
                sizes.append(len(values[graph.spec.inputs[0]])) or run(values)
            ),
        )
    depth = served.exit_depth(Z)
    assert sizes == [(depth >= k).sum() for k in range(3)]
    served.thresholds_[:] = -np.inf  # all exit at once: nothing runs after that
    sizes.clear()
    assert (served.exit_depth(Z) == 0).all()
    assert sizes == [len(Z)]


def test_details_are_those_of_the_cascade(exported):
    cascade, folder = exported
    said, told = OnnxCascade(folder).predict_details(Z), cascade.predict_details(Z)
    stages = cascade.stage_probabilities(Z)
    np.testing.assert_allclose(said.first_confidence, told.first_confidence, rtol=1e-4)
    np.testing.assert_array_equal(said.first_predicted, stages[0].argmax(axis=1))
    np.testing.assert_array_equal(said.cost, cascade.depth_costs_[said.depth])
    assert len(said) == len(told) == len(Z)


def test_monitor_of_the_cascade_takes_them(exported):
    cascade, folder = exported
    monitor = ExitMonitor(cascade, random_state=0).fit(images(60, seed=6)[0])
    monitor.update(OnnxCascade(folder).predict_details(Z))
    assert monitor.n_seen_ == len(Z)


def test_no_samples_give_no_answers(exported):
    labels, depth = OnnxCascade(exported[1]).predict(Z[:0], return_depth=True)
    assert labels.shape == depth.shape == (0,)


def test_exported_cascade_can_be_pickled(exported):
    served = OnnxCascade(exported[1], n_threads=1, batch_size=5)
    found = pickle.loads(pickle.dumps(served))
    np.testing.assert_array_equal(found.predict(Z), served.predict(Z))
    assert repr(found) == f"OnnxCascade({str(exported[1])!r})"


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "sklearn", "scipy", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from sk_calex import OnnxCascade

folder, given, told = sys.argv[1:]
served = OnnxCascade(folder, n_threads=1)
labels, depth = served.predict(np.load(given), return_depth=True)
np.savez(told, labels=labels, depth=depth)
assert "torch" not in sys.modules
"""


def test_served_without_torch_and_scikit_learn(exported, tmp_path):
    given, told = tmp_path / "given.npy", tmp_path / "told.npz"
    np.save(given, Z)
    code = [sys.executable, "-c", WITHOUT_TORCH]
    subprocess.run([*code, str(exported[1]), given, told], check=True)
    labels, depth = OnnxCascade(exported[1]).predict(Z, return_depth=True)
    with np.load(told) as found:
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["depth"], depth)


# -- samples that do not fit -----------------------------------------------------------


def test_wider_floats_are_taken(exported):
    served = OnnxCascade(exported[1])
    wide = Z.astype(np.float64)
    np.testing.assert_array_equal(served.predict_proba(wide), served.predict_proba(Z))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Z[:, :2], r"X has the shape \(50, 2, 16, 16\); expected \(n_samples, 3, 16"),
        (Z[0], "X has the shape"),
        (np.float32(1), "X has the shape"),
        (Z.astype(np.uint8), "X has the dtype uint8, but the cascade was exported for"),
        (Z.astype(np.complex64), "X has the dtype complex64"),
        (np.where(Z > 2, np.nan, Z), "X contains NaN or infinity"),
        (Z.astype(np.float64) * 1e300, "X as float32 contains NaN or infinity"),
    ],
)
def test_samples_that_do_not_fit_are_refused(exported, given, message):
    with pytest.raises(ValueError, match=message):
        OnnxCascade(exported[1]).predict(given)


def test_logits_that_overflow_are_refused(exported):
    with pytest.raises(ValueError, match="the logits of stage 0 contains NaN"):
        OnnxCascade(exported[1]).predict(np.full_like(Z[:1], 3e38))


@pytest.mark.parametrize("name", ["n_threads", "batch_size"])
def test_parameters_are_checked(exported, name):
    with pytest.raises(ValueError, match=f"{name}=0 must be a positive integer"):
        OnnxCascade(exported[1], **{name: 0})


def test_unknown_costs_are_said(copied):
    rewrite(copied, lambda manifest: manifest["content"].update(depth_costs=None))
    served = OnnxCascade(copied)
    assert served.depth_costs_ is None
    with pytest.raises(ValueError, match="Set its parameter costs"):
        served.cost(Z)


def test_several_named_arrays_are_taken_by_name(copied):
    rewrite(copied, lambda manifest: manifest["content"].update(named=True))
    served = OnnxCascade(copied)
    assert len(served.predict({"X": Z})) == len(Z)
    for given in (Z, {"Y": Z}):
        with pytest.raises(ValueError, match=r"X must be a mapping from \['X'\]"):
            served.predict(given)


def test_missing_runtime_is_said(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        OnnxCascade(exported[1])


def test_runtime_that_reads_other_files_is_refused(exported, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(ImportError, match=r"1\.24 or later; this is 1\.23\.2"):
        OnnxCascade(exported[1])


def test_manifest_tells_what_it_decides_by(exported):
    cascade, folder = exported
    content = json.loads((folder / "manifest.json").read_text())["content"]
    assert content["classes"] == {"kind": "str", "values": ["ant", "bee", "cat"]}
    assert content["rule"]["score"] == "confidence"
    np.testing.assert_array_equal(
        np.array(content["rule"]["thresholds"], dtype=float), cascade.thresholds_
    )
    assert content["inputs"] == [
        {"name": "X", "dtype": "float32", "shape": [3, 16, 16]}
    ]
    text = (folder / "README.md").read_text()
    assert "exit rule | `Quota(" in text
