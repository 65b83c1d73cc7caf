"""A frozen module as a transformer: what it gives and what it leaves alone.

Caching and several processes: test_extraction.py. Refusals: test_backbone_errors.py.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from sk_calex import FeatureArray, FrozenBackbone, TapLayout
from sk_calex.store import FeatureStore
from sk_calex.utils._flops import count_macs
from sk_calex.utils._int8 import Int8Features, TapCodec
from tests._models import SHAPE, TinyNet, as_stages, counted, images, tiny_vit

TAPS = ["stem", "block1"]
X = images(7)


def as_input(X):
    """What the module itself is given for uint8 images."""
    return torch.from_numpy(X).float() / 255


def plain_outputs(module, names, x):
    """Outputs of named submodules and of the module, by hooks, in eval mode."""
    module = copy.deepcopy(module).eval()
    found = {}
    for name in names:
        module.get_submodule(name).register_forward_hook(
            # A copy: the ReLU after it works in place.
            lambda _, __, output, name=name: found.update({name: output.clone()})
        )
    with torch.no_grad():
        logits = module(x)
    return [*(found[name] for name in names), logits]


def expected_features(module, names, x, grids):
    *taps, logits = plain_outputs(module, names, x)
    pooled = [
        F.adaptive_avg_pool2d(tap, grid) if grid else tap
        for tap, grid in zip(taps, grids, strict=True)
    ]
    return torch.cat([part.flatten(1) for part in (*pooled, logits)], dim=1).numpy()


@pytest.fixture(scope="module")
def net():
    return TinyNet()


@pytest.fixture(scope="module")
def backbone(net):
    return FrozenBackbone(net, TAPS).fit(X)


@pytest.fixture(scope="module")
def features(backbone):
    return backbone.transform(X)


# What transform gives


def test_features_are_those_of_the_plain_module(net, backbone, features):
    assert type(features) is FeatureArray
    assert features.dtype == np.float32
    assert features.layout is backbone.layout_
    shapes = ((4, 8, 8), (8, 8, 8))
    assert backbone.layout_ == TapLayout(tuple(TAPS), shapes, 4, backbone.stage_macs_)
    expected = expected_features(net, TAPS, as_input(X), [(8, 8), None])
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    stem = plain_outputs(net, ["stem"], as_input(X))[0].numpy()
    slow = stem.reshape(7, 4, 8, 2, 8, 2).mean(axis=(3, 5))
    block = backbone.layout_.block(features, 0).reshape(slow.shape)
    np.testing.assert_allclose(block, slow, rtol=1e-5, atol=1e-6)


class Images(Dataset):
    def __init__(self, X, pairs):
        self.X, self.pairs = X, pairs

    def __getitem__(self, i):
        return (self.X[i], i) if self.pairs else self.X[i]

    def __len__(self):
        return len(self.X)


FORMS = {
    "list": list,
    "tensor": torch.from_numpy,
    "dataset": lambda X: Images(X, pairs=False),
    "dataset of pairs": lambda X: Images(X, pairs=True),
    "tensor dataset": lambda X: TensorDataset(
        torch.from_numpy(X), torch.arange(len(X))
    ),
    "floats": lambda X: X.astype(np.float32) / 255,
    "doubles": lambda X: X.astype(np.float64) / 255,
    "float tensor": as_input,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_samples_gives_the_same(backbone, features, form):
    given = FORMS[form](X)
    np.testing.assert_allclose(
        backbone.transform(given), features, rtol=1e-5, atol=1e-6
    )
    fitted = clone(backbone).fit(given)
    assert fitted.layout_ == backbone.layout_
    assert fitted.sample_shape_ == SHAPE
    assert fitted.n_features_in_ == 3


@settings(max_examples=10)
@given(order=st.permutations(range(7)), size=st.integers(1, 9))
def test_order_and_batch_size_do_not_matter(backbone, features, order, size):
    other = copy.copy(backbone).set_params(batch_size=size)
    permuted = other.transform(X[order])
    np.testing.assert_allclose(permuted, features[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "grids"),
    [
        (2, [(2, 2), (2, 2)]),
        (100, [None, None]),
        (None, [None, None]),
        ((4, 2), [(4, 2), (4, 2)]),
        ([16, 3], [(16, 3), (8, 3)]),
        ({"block1": 1}, [(8, 8), (1, 1)]),
        ({"stem": None, "block1": (np.int64(2), 1)}, [None, (2, 1)]),
    ],
    ids=str,
)
def test_pool_gives_the_grid_of_each_tap(net, pool, grids):
    backbone = FrozenBackbone(net, TAPS, pool=pool).fit(X)
    maps = [(4, 16, 16), (8, 8, 8)]
    shapes = tuple(
        (shape[0], *(grid or shape[1:]))
        for shape, grid in zip(maps, grids, strict=True)
    )
    assert backbone.layout_.shapes == shapes
    expected = expected_features(net, TAPS, as_input(X), grids)
    got = backbone.transform(X)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_tokens_stay_as_they_are():
    vit = tiny_vit()
    taps = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    backbone = FrozenBackbone(vit, taps, pool=1).fit(X)
    assert backbone.layout_.shapes == ((5, 8), (5, 8))
    expected = expected_features(vit, taps, as_input(X), [None, None])
    np.testing.assert_allclose(backbone.transform(X), expected, rtol=1e-4, atol=1e-5)


def test_explicit_stages_are_not_traced():
    class Untraceable(TinyNet):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else self.head(x)

    with pytest.raises(ValueError, match="cannot trace"):
        FrozenBackbone(Untraceable(), TAPS).fit(X)
    stages = as_stages(Untraceable())
    backbone = FrozenBackbone(stages, TAPS).fit(X)
    expected = expected_features(stages, TAPS, as_input(X), [(8, 8), None])
    np.testing.assert_allclose(backbone.transform(X), expected, rtol=1e-5, atol=1e-6)


def test_stages_cost_what_the_module_costs(net, backbone):
    assert sum(backbone.stage_macs_) == count_macs(net, torch.zeros(1, *SHAPE))
    stem, block1, rest = 4 * 256 * 27, 8 * 64 * 36, 16 * 16 * 72 + 4 * 16
    assert backbone.stage_macs_ == (stem, block1, rest)


def test_preprocess_sees_the_raw_batch(net):
    seen = []

    def preprocess(x):
        seen.append((x.dtype, tuple(x.shape)))
        return x.double() / 127.5 - 1

    backbone = FrozenBackbone(net, TAPS, preprocess=preprocess, batch_size=5).fit(X)
    x = torch.from_numpy(X) / 127.5 - 1
    expected = expected_features(net, TAPS, x, [(8, 8), None])
    np.testing.assert_allclose(backbone.transform(X), expected, rtol=1e-4, atol=1e-5)
    # In fit: twice two rows, one alone, one beside another one; then to run them.
    assert seen == [(torch.uint8, (n, *SHAPE)) for n in (2, 2, 1, 2, 2, 5, 2)]


def test_preprocess_may_be_a_module_that_works_in_place(net):
    preprocess = v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True)
    given = torch.rand(4, *SHAPE)
    before = given.clone()
    backbone = FrozenBackbone(net, TAPS, preprocess=preprocess).fit(given)
    backbone.transform(given)
    backbone.predict(given)
    assert torch.equal(given, before)


def test_a_module_that_writes_into_its_input_writes_into_a_copy():
    module = nn.Sequential(nn.ReLU(inplace=True), *as_stages(TinyNet()))
    given = torch.randn(4, *SHAPE)
    before = given.clone()
    backbone = FrozenBackbone(module, ["1"]).fit(given)
    backbone.transform(given)
    backbone.predict(given)
    assert torch.equal(given, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_module_runs_in_its_own_precision(dtype):
    module = TinyNet().to(dtype)
    backbone = FrozenBackbone(module, TAPS, pool=None).fit(X)
    logits = plain_outputs(module, [], as_input(X).to(dtype))[0].float()
    got = backbone.layout_.block(backbone.transform(X), 2)
    np.testing.assert_allclose(got, logits.numpy(), rtol=2e-2)
    assert backbone.transform(X).dtype == np.float32


def test_float16_features_are_the_rounded_float32_ones(net, features):
    half = FrozenBackbone(net, TAPS, dtype="float16").fit(X)
    got = half.transform(X)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, np.asarray(features).astype(np.float16))
    # And what runs live is rounded alike.
    runner = half.runner()
    with runner.inference_mode():
        live = runner.advance(0, runner.start(torch.from_numpy(X)))[0].flatten(1)
    assert live.dtype == torch.float32
    np.testing.assert_array_equal(live, half.layout_.block(got, 0))
    assert torch.equal(live, live.half().float())


@pytest.mark.parametrize("where", ["block1", "head"])
def test_float16_that_overflows_is_refused(where):
    net = TinyNet()
    with torch.no_grad():
        for parameter in getattr(net, where).parameters():
            parameter *= 1e6
    assert np.isfinite(FrozenBackbone(net, TAPS).fit(X).transform(X)).all()
    half = FrozenBackbone(net, TAPS, dtype="float16").fit(X)
    with pytest.raises(ValueError, match="overflow above 65504: use dtype='float32'"):
        half.transform(X)


@pytest.mark.parametrize("taps", [TAPS, ["block1"]])
def test_int8_features_are_the_rounded_float32_ones(net, taps):
    plain = FrozenBackbone(net, taps).fit(X)
    small = FrozenBackbone(net, taps, dtype="int8").fit(X)
    got, layout = small.transform(X), small.layout_
    assert isinstance(got, Int8Features)
    assert got.layout is layout
    full = plain.transform(X)
    assert got.nbytes < 0.3 * full.nbytes
    for k, shape in enumerate(layout.shapes):
        block = torch.from_numpy(np.array(layout.block(full, k))).view(-1, *shape)
        expected = TapCodec(shape).round_trip(block).flatten(1)
        np.testing.assert_array_equal(layout.block(got, k), expected)
    last = layout.n_taps
    np.testing.assert_array_equal(layout.block(got, last), layout.block(full, last))
    # And what runs live is rounded alike.
    runner = small.runner()
    with runner.inference_mode():
        state = runner.start(torch.from_numpy(X))
        for k in range(last + 1):
            live, state = runner.advance(k, state)
            np.testing.assert_array_equal(live.flatten(1), layout.block(got, k))
    np.testing.assert_array_equal(small.predict_proba(X), plain.predict_proba(X))


def test_int8_rows_do_not_depend_on_those_beside_them(net, tmp_path):
    stored = FrozenBackbone(net, TAPS, dtype="int8", cache=tmp_path, batch_size=2)
    stored.fit(X)
    one_by_one = [np.asarray(stored.transform(X[i : i + 1])) for i in (3, 0, 5)]
    with counted(net) as sizes:
        again = stored.transform(X[[3, 0, 5]])
    assert sizes == []
    np.testing.assert_array_equal(again, np.concatenate(one_by_one))
    (section,) = FeatureStore(tmp_path).info()["by_section"].values()
    assert section["dtype"] == "uint8"
    assert section["width"] == again.nbytes // 3


class DividesByDark(nn.Module):
    """Infinity and NaN where an image has a pixel of 255."""

    def forward(self, x):
        return x / (1 - x.amax((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("tap", ["0", "1"])
def test_int8_features_that_are_not_finite_are_refused(tap):
    rest = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    module = nn.Sequential(nn.Identity(), DividesByDark(), *rest)
    given = X // 2
    small = FrozenBackbone(module, [tap], dtype="int8").fit(given)
    assert np.isfinite(small.transform(given)).all()
    given[4, 0, 3, 3] = 255
    with pytest.raises(ValueError, match="features of the module contains NaN or inf"):
        small.transform(given)


# The plain backbone


def test_predictions_are_those_of_the_plain_module(net, backbone):
    logits = plain_outputs(net, [], as_input(X))[0].double()
    proba = backbone.predict_proba(X)
    assert proba.dtype == np.float64
    np.testing.assert_allclose(proba, logits.softmax(dim=1).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(backbone.predict(X), logits.argmax(dim=1).numpy())


def test_predictions_come_as_labels(net, backbone):
    labels = ["cat", "ant", "dog", "bee"]
    named = FrozenBackbone(net, TAPS, classes=labels).fit(X)
    np.testing.assert_array_equal(
        named.predict(X), np.array(labels)[backbone.predict(X)]
    )


# scikit-learn around it


def test_data_frames_carry_the_names(backbone, features):
    frame = clone(backbone).set_output(transform="pandas").fit_transform(X)
    assert isinstance(frame, pd.DataFrame)
    np.testing.assert_array_equal(frame.to_numpy(), np.asarray(features))
    np.testing.assert_array_equal(frame.columns, backbone.get_feature_names_out())
    assert backbone.get_feature_names_out()[[0, -1]].tolist() == [
        "stem[0,0,0]",
        "output[3]",
    ]
    layout = TapLayout.from_feature_names(frame.columns)
    assert layout.shapes == backbone.layout_.shapes


def test_polars_frames_too(backbone, features):
    pytest.importorskip("polars")
    frame = clone(backbone).set_output(transform="polars").fit(X).transform(X)
    assert frame.columns == backbone.get_feature_names_out().tolist()
    np.testing.assert_array_equal(frame.to_numpy(), np.asarray(features))


def test_clones_share_the_module_and_are_not_fitted(net):
    preprocess = v2.ToDtype(torch.float32, scale=True)
    backbone = FrozenBackbone(net, TAPS, pool={"stem": 2}, preprocess=preprocess).fit(X)
    twin = clone(backbone.set_output(transform="pandas"))
    assert twin.module is net
    assert twin.preprocess is preprocess
    assert twin.get_params() == backbone.get_params()
    assert twin.pool is not backbone.pool
    assert isinstance(twin.fit_transform(X), pd.DataFrame)
    with pytest.raises(NotFittedError):
        clone(backbone).transform(X)


def through_joblib(backbone, folder):
    joblib.dump(backbone, folder / "backbone")
    return joblib.load(folder / "backbone")


COPIES = {
    "deepcopy": lambda backbone, _: copy.deepcopy(backbone),
    "pickle": lambda backbone, _: pickle.loads(pickle.dumps(backbone)),
    "joblib": through_joblib,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_fitted_backbone_work(backbone, features, tmp_path, how):
    twin = COPIES[how](backbone, tmp_path)
    assert twin.module is not backbone.module
    np.testing.assert_array_equal(twin.predict(X), backbone.predict(X))
    np.testing.assert_array_equal(twin.transform(X), features)
    assert twin.layout_ == backbone.layout_
    # Each on its own: nothing has been asked of this copy yet.
    raw = torch.from_numpy(X)
    twin = COPIES[how](backbone, tmp_path)
    started = []
    for runner in (backbone.runner(), twin.runner()):
        with runner.inference_mode():
            started += runner.start(raw)
    assert torch.equal(*started)


def test_parameters_are_set_and_nested(net):
    backbone = FrozenBackbone(net, TAPS)
    pipeline = make_pipeline(backbone, LogisticRegression())
    pipeline.set_params(frozenbackbone__pool=1, frozenbackbone__batch_size=3)
    assert (backbone.pool, backbone.batch_size) == (1, 3)
    y = np.arange(7) % 2
    assert pipeline.fit(X, y).predict(X).shape == (7,)
    assert pipeline[0].layout_.width == 4 + 8 + 4


def test_repr_is_short_and_names_the_module(net, backbone):
    assert repr(backbone) == "FrozenBackbone(module=<TinyNet>, taps=['stem', 'block1'])"
    named = FrozenBackbone(as_stages(net), TAPS, pool=2)
    assert repr(named) == (
        "FrozenBackbone(module=<Sequential>, pool=2, taps=['stem', 'block1'])"
    )
    assert "<TinyNet>" not in repr(backbone.get_params())


def test_a_module_that_is_changed_in_place_is_cut_again():
    net = TinyNet()
    backbone = FrozenBackbone(net, TAPS).fit(X)
    with torch.no_grad():
        net.stem[0].weight.mul_(2)
        net.stem[1].running_mean.add_(0.1)
    changed = FrozenBackbone(net, TAPS).fit(X).transform(X)
    np.testing.assert_array_equal(backbone.transform(X), changed)
    net.stem[0].weight.data = net.stem[0].weight.data / 2
    changed = FrozenBackbone(net, TAPS).fit(X).transform(X)
    np.testing.assert_array_equal(backbone.transform(X), changed)
    net.double()
    np.testing.assert_allclose(backbone.transform(X), changed, rtol=1e-4, atol=1e-5)


# What it leaves alone


def state_of(module):
    tensors = {k: v.clone() for k, v in module.state_dict().items()}
    flags = {name: m.training for name, m in module.named_modules()}
    return tensors, flags


def use(backbone):
    return backbone.transform(X), backbone.predict_proba(X)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_weights_buffers_and_flags_stay(device):
    net = TinyNet().train()
    net.block1.eval()
    tensors, flags = state_of(net)
    backbone = FrozenBackbone(net, TAPS, device=device).fit(X)
    first = use(backbone)
    assert state_of(net)[1] == flags

    net.train()
    after_train = use(backbone)
    assert all(m.training for m in net.modules())
    net.eval()
    after_eval = use(backbone)
    for other in (after_train, after_eval):
        np.testing.assert_array_equal(other[0], first[0])
        np.testing.assert_array_equal(other[1], first[1])
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_on_another_device_a_copy_runs(features):
    # The same place by another name: all that can be had without an accelerator.
    net = TinyNet()
    backbone = FrozenBackbone(net, TAPS, device="cpu:0").fit(X)
    np.testing.assert_array_equal(backbone.transform(X), features)
    assert backbone.module is net
    with torch.no_grad():
        net.head[-1].bias += 1
    np.testing.assert_array_equal(backbone.transform(X), features)
    assert not np.array_equal(backbone.fit(X).transform(X), features)


def test_flags_come_back_after_an_error():
    net = TinyNet().train()
    backbone = FrozenBackbone(net, TAPS).fit(X)
    with pytest.raises(ValueError, match="NaN"):
        backbone.transform(np.full((2, *SHAPE), np.nan))
    assert all(m.training for m in net.modules())
    assert not torch.is_inference_mode_enabled()


def test_global_random_numbers_are_not_drawn(net):
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    backbone = pickle.loads(pickle.dumps(FrozenBackbone(net, TAPS).fit(X)))
    use(backbone)
    assert torch.equal(torch.get_rng_state(), before[0])
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(after[1], before[1][1])


def test_a_dataset_is_read_in_normal_mode(net):
    class Lazy(Dataset):
        """Keeps what it made: later it may be trained on."""

        def __init__(self):
            self.kept = [None] * 4

        def __len__(self):
            return 4

        def __getitem__(self, i):
            if self.kept[i] is None:
                self.kept[i] = torch.from_numpy(X[i]).float()
            return self.kept[i]

    for read in (FrozenBackbone.transform, FrozenBackbone.predict):
        data = Lazy()
        read(FrozenBackbone(net, TAPS).fit(Lazy()), data)
        assert not any(image.is_inference() for image in data.kept)


@pytest.mark.parametrize("given", [np.float32, np.uint8])
def test_read_only_samples_are_left_alone(backbone, given):
    frozen = X.astype(given)
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(backbone)
        backbone.transform(frozen)
    np.testing.assert_array_equal(frozen, X.astype(given))


def test_a_progress_bar_is_shown_on_request(net, capsys):
    quiet = FrozenBackbone(net, TAPS, batch_size=2).fit(X)
    quiet.transform(X)
    assert capsys.readouterr() == ("", "")
    clone(quiet).set_params(verbose=1).fit(X).transform(X)
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert "row" in shown
