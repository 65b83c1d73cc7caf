"""What is exported is the whole cascade, and what cannot be is named."""

import doctest
import json
import sys

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    OnnxCascade,
    export_onnx,
)
from sk_calex.baselines import (
    BoostNetClassifier,
    ExitNet,
    PTEENetClassifier,
    SDNClassifier,
    ZTWClassifier,
)
from sk_calex.cascade._onnx._answer_modules import answer_module
from sk_calex.cascade._onnx._graphs import check_graph, import_onnx_tools
from sk_calex.cascade._onnx._manifest import Manifest
from sk_calex.cascade._onnx._quantize import tabulate_answers
from sk_calex.policies import OptimalStopping, Quota, SharedThreshold
from sk_calex.utils._checked_folder import read_folder
from tests._cascade_models import small_branch, tiny_backbone
from tests._models import tiny_vit
from tests.cascade.onnx._exported import (
    LABELS,
    X,
    Y,
    Z,
    answers_alike,
    fitted,
    skip_without_exporter,
)

skip_without_exporter()

ONE_TAP = {"taps": ["stem"]}


def bytes_of_images(n=40, size=16, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return X, np.arange(n) % n_classes


class Normalize(nn.Module):
    """Bytes to standardised floats; the constants are no buffers, as in many a code."""

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.5, 0.4, 0.45]).view(3, 1, 1)

    def forward(self, x):
        return (x.float() / 255 - self.mean) / 0.25


def resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=3), ["layer1"]


def mobilenet():
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=3), ["features.3"]


def vit():
    return tiny_vit(3), ["encoder.layers.encoder_layer_0"]


@pytest.mark.parametrize(
    ("make", "head", "preprocess"),
    [
        (resnet, "prototype_augmented", Normalize()),
        (mobilenet, "sdn", None),
        (vit, "conv1d", None),
    ],
)
def test_known_networks_answer_alike(make, head, preprocess, tmp_path):
    """Preprocessing, pooling and channel order are in the graphs: X is bytes."""
    module, taps = make()
    images, labels = bytes_of_images()
    backbone = FrozenBackbone(module, taps, pool=3, preprocess=preprocess)
    cascade = CascadeClassifier(
        backbone,
        branch=BranchClassifier(head, max_iter=1, solver="adam", random_state=0),
        calibrator=Quota(1.0),
        random_state=0,
    ).fit(images, labels)
    mode = module.training
    export_onnx(cascade, tmp_path / "exported")
    assert module.training is mode
    served = OnnxCascade(tmp_path / "exported", n_threads=1)
    depth = answers_alike(served, cascade, images, atol=1e-4)
    assert len(set(depth)) == 2


@pytest.mark.parametrize(
    "method",
    [
        PTEENetClassifier(widths=(4,), calibrator=Quota(1.0), max_iter=2),
        ZTWClassifier(width=4, calibrator=Quota(1.0), max_iter=2),
    ],
    ids=repr,
)
def test_baselines_answer_alike(method, tmp_path):
    """Also where the method has a gate, or a branch builds on the one before."""
    method.set_params(backbone=tiny_backbone(), random_state=0).fit(X, LABELS[Y])
    export_onnx(method, tmp_path / "exported")
    answers_alike(OnnxCascade(tmp_path / "exported"), method)


def test_own_gate_of_a_method_is_exported(tmp_path):
    backbone = tiny_backbone(**ONE_TAP)
    method = PTEENetClassifier(
        backbone, widths=(4,), solver="adam", max_iter=1, random_state=0
    ).fit(X, Y)
    export_onnx(method, tmp_path / "exported")
    content = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert content["content"]["rule"]["score"] == "gate"
    served = OnnxCascade(tmp_path / "exported")
    np.testing.assert_allclose(
        served.stage_probabilities(Z), method.stage_probabilities(Z), atol=1e-5
    )
    served.thresholds_[:] = np.inf
    assert (served.exit_depth(Z) == 1).all()
    served.thresholds_[:] = 0.0  # below every sigmoid
    assert (served.exit_depth(Z) == 0).all()


def test_ensembles_answer_alike(tmp_path):
    cascade = fitted(backbone=tiny_backbone(**ONE_TAP), ensemble=True)
    export_onnx(cascade, tmp_path / "exported")
    answers_alike(OnnxCascade(tmp_path / "exported"), cascade)
    # What new thresholds are compared with is the last stage alone, not the ensemble.
    folder = tmp_path / "exported"
    manifest, files = read_folder(folder, "sk_calex.onnx")
    graphs = [files[f"stage_{k}.onnx"] for k in range(2)]
    content = Manifest.from_json(manifest["content"])
    table, reference = tabulate_answers(content, graphs, Z, folder)
    plain = cascade.backbone_.predict_proba(Z)
    np.testing.assert_array_equal(reference, plain.argmax(axis=1))
    stages = cascade.stage_probabilities(Z)
    np.testing.assert_allclose(table.confidence, stages.max(axis=2), atol=1e-5)


def test_ensembles_of_sums_answer_alike(tmp_path):
    """A branch passes on its sum, and the answers of the stages are kept beside it."""
    method = BoostNetClassifier(
        tiny_backbone(),
        head_params={"widths": (4,)},
        ensemble=True,
        calibrator=OptimalStopping(0.1),
        solver="adam",
        max_iter=2,
        random_state=0,
    ).fit(X, LABELS[Y])
    export_onnx(method, tmp_path / "exported")
    answers_alike(OnnxCascade(tmp_path / "exported"), method)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_of_a_backbone_are_taken_or_made(tmp_path, dtype):
    """A cascade on features: graphs for features, or with the backbone for images."""
    backbone = tiny_backbone(taps=["block1"], dtype=dtype).fit(X)
    features = backbone.transform(X)
    cascade = CascadeClassifier(
        input="features",
        branch=LogisticRegression(),
        calibrator=Quota(1.0),
        random_state=0,
    ).fit(features, LABELS[Y])
    export_onnx(cascade, tmp_path / "features")
    made = backbone.transform(Z)
    depth = answers_alike(OnnxCascade(tmp_path / "features"), cascade, made)
    export_onnx(cascade, tmp_path / "images", backbone=backbone)
    served = OnnxCascade(tmp_path / "images")
    np.testing.assert_allclose(
        served.stage_probabilities(Z), cascade.stage_probabilities(made), atol=2e-3
    )
    assert np.mean(served.exit_depth(Z) == depth) > 0.9
    other = tiny_backbone(taps=["stem"]).fit(X)
    with pytest.raises(ValueError, match=r"of taps \['stem'\]"):
        export_onnx(cascade, tmp_path / "images", backbone=other)
    with pytest.raises(TypeError, match="must be a fitted FrozenBackbone"):
        export_onnx(cascade, tmp_path / "images", backbone=nn.Linear(1, 1))


class BagOfWords(nn.Module):
    """Means of embeddings of the words that a mask keeps."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids, mask):
        kept = self.words(ids) * mask.unsqueeze(-1)
        return self.head(self.body(kept.sum(1)).relu())


def test_named_inputs_of_integers_are_exported(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "ids": rng.integers(20, size=(40, 5)),
        "mask": rng.integers(2, size=(40, 5)),
    }
    cascade = CascadeClassifier(
        FrozenBackbone(BagOfWords(), ["body"]),
        branch=BranchClassifier("gap", random_state=0),
        calibrator=Quota(1.0),
        random_state=0,
    ).fit(given, np.arange(40) % 2)
    export_onnx(cascade, tmp_path / "exported")
    served = OnnxCascade(tmp_path / "exported", batch_size=7)
    answers_alike(served, cascade, given)
    narrow = {name: array.astype(np.int32) for name, array in given.items()}
    np.testing.assert_array_equal(served.predict(narrow), served.predict(given))
    with pytest.raises(ValueError, match="the arrays of X differ in length"):
        served.predict(given | {"mask": given["mask"][:3]})


def test_preprocessing_may_stay_outside(tmp_path):
    images, labels = bytes_of_images()
    prepare = Normalize()
    cascade = fitted_on(images, labels, preprocess=prepare)
    export_onnx(cascade, tmp_path / "exported", include_preprocess=False)
    served = OnnxCascade(tmp_path / "exported")
    given = prepare(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        served.stage_probabilities(given),
        cascade.stage_probabilities(images),
        atol=1e-5,
    )


def fitted_on(images, labels, module=None, **params):
    backbone = tiny_backbone(**ONE_TAP, **params)
    if module is not None:
        backbone = FrozenBackbone(module, ["0"], **params)
    return CascadeClassifier(
        backbone, branch=small_branch("gap"), calibrator=Quota(1.0), random_state=0
    ).fit(images, labels)


def test_example_of_the_docstring_runs(tmp_path, monkeypatch):
    """Doctest skips it: the extra may be missing."""
    monkeypatch.chdir(tmp_path)
    text = export_onnx.__doc__.replace("# doctest: +SKIP", "")
    example = doctest.DocTestParser().get_doctest(text, {}, "export_onnx", None, 0)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert (tmp_path / "iris" / "stage_1.onnx").exists()


# -- what cannot be exported -----------------------------------------------------------


class Spectrum(nn.Module):
    """An operation that ONNX has no counterpart for."""

    def forward(self, x):
        return torch.linalg.svdvals(x.flatten(2))


def test_operation_without_a_counterpart_is_named_with_its_module(tmp_path):
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.spectrum = Spectrum()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.spectrum(x))

    images, labels = bytes_of_images()
    cascade = fitted_on(images, labels, nn.Sequential(nn.Conv2d(3, 4, 3), Tail()))
    with pytest.raises(ValueError, match=r"stage 1 \(the last one\) cannot be") as told:
        export_onnx(cascade, tmp_path / "exported")
    assert "svd" in str(told.value)
    assert "a Spectrum," in str(told.value)
    assert not (tmp_path / "exported").exists()


def test_preprocessing_that_cannot_be_traced_is_named_with_its_remedy(tmp_path):
    def through_numpy(x):
        return torch.from_numpy(x.numpy() / np.float32(255))

    images, labels = bytes_of_images()
    cascade = fitted_on(images, labels, preprocess=through_numpy)
    with pytest.raises(ValueError, match=r"stage 0 .*include_preprocess=False"):
        export_onnx(cascade, tmp_path / "exported")


def test_lowered_precision_is_refused(tmp_path):
    images, labels = bytes_of_images()
    cascade = fitted_on(images, labels, amp="bfloat16")
    with pytest.raises(ValueError, match="Set amp=None, recalibrate"):
        export_onnx(cascade, tmp_path / "exported")
    cascade.backbone_.set_params(amp=None)  # thresholds of other numbers
    with pytest.raises(ValueError, match="calibrated with amp='bfloat16'"):
        export_onnx(cascade, tmp_path / "exported")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_is_a_linear_graph(scaled, n_classes):
    rng = np.random.default_rng(0)
    rows, codes = rng.standard_normal((60, 4)) + 2, np.arange(60) % n_classes
    model = LogisticRegression()
    if scaled:
        model = make_pipeline(StandardScaler(), model)
    model.fit(rows, codes)
    logits, gate, memory = answer_module(model, "branch 0")(torch.tensor(rows), None)
    np.testing.assert_allclose(logits.softmax(1).numpy(), model.predict_proba(rows))
    assert gate is memory is None


@pytest.mark.parametrize(
    "branch",
    [
        RandomForestClassifier(n_estimators=2, random_state=0),
        make_pipeline(MinMaxScaler(), LogisticRegression()),
    ],
    ids=repr,
)
def test_branch_without_a_form_is_named_with_the_remedy(branch, tmp_path):
    rows, codes = np.random.default_rng(0).random((60, 4)), np.arange(60) % 2
    with pytest.raises(TypeError, match=r"(?s)branch 3 is .*LogisticRegression"):
        answer_module(branch.fit(rows, codes), "branch 3")
    cascade = CascadeClassifier(
        branch=LogisticRegression(),
        final_estimator=branch,
        calibrator=SharedThreshold(0.6),
        random_state=0,
    ).fit(rows, codes)
    with pytest.raises(TypeError, match=r"(?s)final_estimator is .*has no form"):
        export_onnx(cascade, tmp_path / "exported")


class OtherProbabilities(LogisticRegression):
    """Answers otherwise than its coefficients say."""

    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


def test_subclass_that_answers_otherwise_is_refused():
    rows, codes = np.random.default_rng(0).random((60, 4)), np.arange(60) % 2
    with pytest.raises(TypeError, match="has no form as a graph"):
        answer_module(OtherProbabilities().fit(rows, codes), "branch 0")


def test_net_that_reads_in_numpy_is_refused(monkeypatch, tmp_path):
    method = SDNClassifier(solver="adam", max_iter=1, random_state=0).fit(
        X.reshape(len(X), -1)[:, :20], Y
    )

    class Reads(ExitNet):
        def read(self, branch, outputs):
            return super().read(branch, outputs)

    monkeypatch.setattr(method.net_, "__class__", Reads)
    with pytest.raises(TypeError, match="Override `read_tensors`"):
        export_onnx(method, tmp_path / "exported")


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="best_estimator_ or cascade_"):
        export_onnx(LogisticRegression(), tmp_path / "exported")


def test_graph_that_gives_other_values_is_refused(exported):
    graph = (exported[1] / "stage_0.onnx").read_bytes()

    class Other(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3), torch.zeros(len(x), 4, 16, 16)

    with pytest.raises(ValueError, match="stage 0 gives other values"):
        check_graph(graph, Other(), [torch.rand(2, 3, 16, 16)], ["X"], "stage 0")


def test_graph_that_does_not_run_is_said():
    with pytest.raises(ValueError, match="stage 0 was exported, but onnxruntime"):
        check_graph(b"no graph", nn.Identity(), [torch.rand(2, 3)], ["X"], "stage 0")


def test_samples_of_unknown_kind_are_said(exported, monkeypatch, tmp_path):
    cascade = exported[0]
    monkeypatch.setattr(cascade.backbone_, "sample_shape_", (3, None, None))
    with pytest.raises(ValueError, match=r"files of any size.*include_preprocess=Fa"):
        export_onnx(cascade, tmp_path / "exported")
    monkeypatch.delattr(cascade.backbone_.runner(), "sample_dtype")
    with pytest.raises(ValueError, match="Fit it again"):
        export_onnx(cascade, tmp_path / "exported")


def test_missing_exporter_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-calex\[onnx\]'"):
        export_onnx(None, tmp_path / "exported")


def test_other_things_in_the_way_are_kept(exported, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no saved"):
        export_onnx(fitted_flat(), tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def fitted_flat():
    rows = np.random.default_rng(0).random((60, 4))
    return CascadeClassifier(
        branch=LogisticRegression(), calibrator=SharedThreshold(0.6), random_state=0
    ).fit(rows, np.arange(60) % 2 == 0)


def test_labels_keep_their_kind(tmp_path):
    cascade = fitted_flat()
    export_onnx(cascade, tmp_path / "exported")
    served = OnnxCascade(tmp_path / "exported")
    assert served.classes_.tolist() == [False, True]
    rows = np.random.default_rng(1).integers(2, size=(9, 4))  # integers, too
    np.testing.assert_array_equal(served.predict(rows), cascade.predict(rows))


# -- 8 bits ----------------------------------------------------------------------------


def test_int8_chooses_its_own_thresholds(tmp_path, exported):
    """By quota, so that shares of the answers of the new graphs exit."""
    cascade = exported[0]
    before = cascade.thresholds_.copy()
    labels = LABELS[Y]
    export_onnx(
        cascade, tmp_path / "int8", quantize="int8", calibration_data=(X, labels)
    )
    served, plain = OnnxCascade(tmp_path / "int8"), OnnxCascade(exported[1])
    difference = np.abs(served.stage_probabilities(X) - plain.stage_probabilities(X))
    assert 0 < difference.mean() < 0.05
    assert np.bincount(served.exit_depth(X)).tolist() == [30, 30, 30]
    np.testing.assert_array_equal(cascade.thresholds_, before)
    assert not np.array_equal(served.thresholds_, before)
    told = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    assert told["content"]["quantized"] == "int8"


def test_torch_without_the_exporter_is_said(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(ImportError, match=r"needs torch 2\.9 or later; this is 2\.8"):
        import_onnx_tools()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"quantize": "int4"}, "quantize must be None or 'int8'"),
        ({"quantize": "int8"}, "belong together"),
        ({"calibration_data": (X, Y)}, "belong together"),
        ({"quantize": "int8", "calibration_data": (X,)}, r"must be a pair \(X, y\)"),
    ],
)
def test_quantize_asks_for_calibration_data(exported, params, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(exported[0], tmp_path / "exported", **params)
