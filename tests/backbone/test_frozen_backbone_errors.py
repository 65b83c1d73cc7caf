"""What a backbone refuses: each time the error names what was given, and a way on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.utils.data import TensorDataset

from sk_calex import FrozenBackbone
from tests._models import SHAPE, TinyNet, as_stages, images, tiny_vit

TAPS = ["stem", "block1"]
X = images(7)


@pytest.fixture(scope="module")
def net():
    return TinyNet()


@pytest.fixture(scope="module")
def backbone(net):
    return FrozenBackbone(net, TAPS).fit(X)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["block3"], "'block3' is not in the module. Near names:.* 'block1'"),
        (["stem", "stem"], "'stem' is repeated"),
        (
            ["block1", "stem"],
            r"not in order of execution; give taps=\['stem', 'block1'",
        ),
        (["head"], "is the module's output"),
        ([], "taps is empty"),
    ],
)
def test_taps_that_cannot_be_are_refused(net, taps, message):
    with pytest.raises(ValueError, match=message):
        FrozenBackbone(net, taps).fit(X)


@pytest.mark.parametrize(
    "pool",
    [
        (0, 1),
        (1,),
        (1, 2, 3),
        (2.5, 2),
        "ab",
        {"stem": 0},
        {"stem": "4"},
        {"stem": 1.5},
    ],
    ids=str,
)
def test_pools_that_are_no_grid_are_refused(net, pool):
    error = InvalidParameterError if pool == "ab" else ValueError
    with pytest.raises(error, match=r"pool=.*for tap 'stem'|'pool' parameter"):
        FrozenBackbone(net, TAPS, pool=pool).fit(X)


def test_pools_of_other_taps_are_refused(net):
    with pytest.raises(ValueError, match=r"pool names \['block2'\], which are not"):
        FrozenBackbone(net, TAPS, pool={"block2": 2}).fit(X)


@pytest.mark.parametrize(
    "parameters",
    [
        {"module": "resnet18"},
        {"taps": "stem"},
        {"pool": 0},
        {"preprocess": 255},
        {"batch_size": 0},
        {"device": 0.5},
        {"dtype": "float64"},
        {"n_jobs": 0.5},
        {"cache": 3},
    ],
    ids=str,
)
def test_parameters_of_the_wrong_kind_are_named(net, parameters):
    backbone = FrozenBackbone(net, TAPS).set_params(**parameters)
    with pytest.raises(InvalidParameterError, match=f"The '{next(iter(parameters))}'"):
        backbone.fit(X)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99"])
def test_devices_that_are_not_there_are_refused(net, device):
    with pytest.raises(ValueError, match=f"device='{device}'"):
        FrozenBackbone(net, TAPS, device=device).fit(X)


@pytest.mark.parametrize(
    "classes", [["a", "b"], ["a", "b", "c", "a"], [["a"], ["b"], ["c"], ["d"]]]
)
def test_classes_that_do_not_fit_the_outputs_are_refused(net, classes):
    with pytest.raises(ValueError, match="classes must be 4 different labels"):
        FrozenBackbone(net, TAPS, classes=classes).fit(X)


@pytest.mark.parametrize(
    "shape", [(2, 1, 16, 16), (2, 16, 16, 3), (2, 3), (2, 3, 16)], ids=str
)
def test_samples_that_the_module_refuses_are_explained(net, shape):
    x = np.zeros(shape, dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"the module refused a batch of shape .*chann"
    ):
        FrozenBackbone(net, TAPS).fit(x)


def test_images_with_channels_last_are_recognised(net):
    """And only these: not images whose channels are first but too many."""
    x = np.zeros((2, 16, 16, 3), dtype=np.float32)
    for given, seen in ((x, True), (x.transpose(0, 3, 1, 2)[:, :1], False)):
        with pytest.raises(ValueError, match="the module refused") as caught:
            FrozenBackbone(net, TAPS).fit(given)
        assert ("X.transpose(0, 3, 1, 2)" in str(caught.value)) == seen


def test_a_size_that_the_module_asserts_is_explained():
    taps = ["encoder.layers.encoder_layer_0"]
    with pytest.raises(ValueError, match=r"refused a batch.*Expected 16"):
        FrozenBackbone(tiny_vit(), taps).fit(np.zeros((2, 3, 8, 8), np.uint8))


@pytest.mark.parametrize("method", ["transform", "predict", "predict_proba"])
def test_samples_unlike_those_in_fit_are_refused(backbone, method):
    run = getattr(backbone, method)
    with pytest.raises(
        ValueError, match=r"shape \(3, 8, 8\).*fitted with \(3, 16, 16\)"
    ):
        run(np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="X is empty"):
        run(X[:0])
    with pytest.raises(ValueError, match=r"X is of dtype torch\.int64, but .* floats"):
        run(X.astype(np.int64))
    for value in (np.nan, np.inf):
        x = X / 255
        x[5, 1, 2, 3] = value
        with pytest.raises(ValueError, match="X contains NaN or infinity"):
            run(x)


def test_fit_refuses_what_it_cannot_learn_from(net):
    with pytest.raises(ValueError, match="X is empty"):
        FrozenBackbone(net, TAPS).fit(X[:0])
    with pytest.raises(ValueError, match="NaN"):
        FrozenBackbone(net, TAPS).fit(np.full((2, *SHAPE), np.nan))
    with pytest.raises(ValueError, match="X has numbers for samples"):
        FrozenBackbone(net, TAPS).fit(TensorDataset(torch.zeros(3)))
    maps = nn.Sequential(*list(as_stages(net))[:3])
    with pytest.raises(ValueError, match=r"outputs of shape \(16, 4, 4\)"):
        FrozenBackbone(maps, ["0"]).fit(X)


def test_one_sample_is_enough(net, backbone):
    alone = FrozenBackbone(net, TAPS).fit(X[:1])
    assert alone.layout_ == backbone.layout_
    assert alone.transform(X[:1]).shape == (1, alone.layout_.width)


@pytest.mark.parametrize("where", ["stem", "head"])
def test_weights_that_give_no_numbers_are_refused(where):
    net = TinyNet()
    backbone = FrozenBackbone(net, TAPS).fit(X)
    with torch.no_grad():
        getattr(net, where)[-1 if where == "head" else 1].bias[0] = torch.nan
    for run in (backbone.transform, backbone.predict):
        with pytest.raises(ValueError, match=r"finite.*Check its weights"):
            run(X)
    with pytest.raises(ValueError, match="finite"):
        FrozenBackbone(net, TAPS).fit(X)


@pytest.mark.parametrize(
    "method", ["transform", "predict", "predict_proba", "get_feature_names_out"]
)
def test_an_unfitted_backbone_says_so(net, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(FrozenBackbone(net, TAPS), method)(X)


def test_a_failed_fit_leaves_nothing_of_the_one_before(net):
    backbone = FrozenBackbone(net, TAPS).fit(X)
    with pytest.raises(ValueError, match="refused"):
        backbone.fit(np.zeros((2, 1, 8, 8), np.uint8))
    assert not [name for name in vars(backbone) if name.endswith("_")]
    with pytest.raises(NotFittedError, match="not fitted yet"):
        backbone.predict(X)
