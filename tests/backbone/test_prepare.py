"""Batches become module inputs: scaled, cast, preprocessed; anything odd is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms

from sk_calex import FrozenBackbone
from sk_calex.backbone import _prepare
from sk_calex.backbone._prepare import NamedBatch, check_preprocess
from tests._models import TinyNet, images

CPU = torch.device("cpu")


def prepare(batch, preprocess=None, dtype=torch.float32):
    return _prepare.prepare(batch, preprocess, CPU, dtype)


def test_bytes_are_scaled_and_floats_pass():
    raw = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(prepare(raw), torch.tensor([[0.0, 0.2, 1.0]]))
    floats = torch.tensor([[0.0, -3.0, 255.0]], dtype=torch.float64)
    assert torch.equal(prepare(floats), floats.float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_other_integers_are_never_cast(dtype):
    raw = torch.ones(2, 3, dtype=dtype)
    for target in (torch.float32, torch.bfloat16):
        assert prepare(raw, dtype=target).dtype == dtype
        assert prepare(raw.float(), lambda x: x.to(dtype), target).dtype == dtype
    assert torch.equal(prepare(raw, torch.Tensor.float), torch.ones(2, 3))
    ids = torch.tensor([[2**40 + 1, 257]])
    assert torch.equal(prepare(ids, dtype=torch.bfloat16), ids)


def test_floats_that_do_not_fit_the_dtype_of_the_module_are_refused_by_name():
    with pytest.raises(ValueError, match=r"X holds 1e\+39, which is infinite in"):
        prepare(torch.tensor([[1e39]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"X\['a'\] holds 7e\+04.*torch.float16"):
        prepare(NamedBatch({"a": torch.tensor([[7e4]])}), dtype=torch.float16)
    assert prepare(torch.tensor([[1e38]]), dtype=torch.bfloat16).isfinite().all()


def test_integers_for_a_module_of_floats_are_refused_with_their_dtype():
    X = images(3).astype(np.int64)
    with pytest.raises(ValueError, match=r"module refused .*int64.*integers stay int"):
        FrozenBackbone(TinyNet(), ["stem"]).fit(X)


def test_inputs_by_name_are_prepared_each_as_it_is():
    raw = NamedBatch(
        {
            "ids": torch.tensor([[1, 2], [3, 4]]),
            "mask": torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8),
            "values": torch.tensor([[0.5], [1.0]], dtype=torch.float64),
        }
    )
    found = prepare(raw)
    assert {k: v.dtype for k, v in found.items()} == {
        "ids": torch.int64,
        "mask": torch.uint8,  # an image would be scaled
        "values": torch.float32,
    }
    made = prepare(raw, lambda batch: {"x": batch["values"] + batch["ids"]})
    assert torch.equal(made["x"], torch.tensor([[1.5, 2.5], [4.0, 5.0]]))
    alone = prepare(raw, lambda batch: batch["ids"])
    assert torch.equal(alone, raw.tensors["ids"])
    raw.tensors["values"][1] = torch.nan
    with pytest.raises(ValueError, match=r"X\['values'\] contains NaN"):
        prepare(raw)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    raw = torch.zeros(2, 3)
    raw[1, 1] = value
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        prepare(raw, torch.nan_to_num)


@pytest.mark.parametrize(
    ("preprocess", "error", "message"),
    [
        (torch.Tensor.numpy, TypeError, "got ndarray"),
        (lambda x: {"a": x, "b": 3}, TypeError, r"preprocess\(\)\['b'\].*got int"),
        (lambda x: {"a": x[:1]}, ValueError, r"preprocess\(\)\['a'\] made"),
        (torch.mean, ValueError, r"shape \(\)"),
        (lambda x: x[:1], ValueError, r"shape \(1, 3\) from a batch of 2"),
    ],
)
def test_a_preprocess_that_returns_something_else_is_named(preprocess, error, message):
    with pytest.raises(error, match=message):
        prepare(torch.zeros(2, 3), preprocess)


# A preprocess that depends on chance or on the batch


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def centred(x):
    return x.float() - x.float().mean(0)


def by_size(x):
    return x.float() / len(x)


def named(function):
    return lambda batch: {"a": function(batch["a"])}


RAW = torch.arange(12.0).reshape(2, 6)
SAME = torch.ones(2, 6)  # two equal rows, such as blank images


@pytest.mark.parametrize("raw", [RAW, RAW[:1], SAME, RAW.long(), SAME.byte()])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_preprocess_that_is_random_or_looks_at_the_batch_is_refused(raw, by_name):
    def check(function):
        batch = NamedBatch({"a": raw.clone()}) if by_name else raw.clone()
        function = named(function) if by_name else function
        check_preprocess(batch, function, CPU, torch.float32)

    with pytest.raises(ValueError, match="another result when it is called again"):
        check(lambda x: Noise()(x.float()))
    with pytest.raises(ValueError, match="when the other samples of its batch change"):
        check(by_size)
    if raw.is_floating_point() or not torch.equal(raw, raw[:1].expand_as(raw)):
        with pytest.raises(ValueError, match="when the other samples"):
            check(centred)
    check(lambda x: x.float().sub_(3) / 2)
    check(lambda x: x)


def test_a_random_preprocess_is_refused_when_the_backbone_is_fitted():
    backbone = FrozenBackbone(TinyNet(), ["stem"], preprocess=lambda x: x / len(x))
    with pytest.raises(ValueError, match="preprocess gives another result"):
        backbone.fit(images(2))
    backbone.set_params(preprocess=lambda x: Noise()(x / 255))
    with pytest.raises(ValueError, match="random augmentation"):
        backbone.fit(images(2))


def test_a_preprocess_that_fails_is_named_when_the_backbone_is_fitted():
    for_one = transforms.ToTensor()
    backbone = FrozenBackbone(TinyNet(), ["stem"], preprocess=for_one)
    with pytest.raises(ValueError, match=r"preprocess=ToTensor\(\) failed.*: pic"):
        backbone.fit(images(2))


def test_a_shape_that_depends_on_the_batch_is_refused():
    check = [RAW, lambda x: x[:, : 5 + (len(x) > 1)], CPU, torch.float32]
    with pytest.raises(ValueError, match="when the other samples of its batch change"):
        check_preprocess(*check)


def test_scrambled_samples_keep_to_their_kind():
    ids = torch.tensor([[5, 6, 7, 8]])
    other = _prepare.scrambled(ids)
    assert set(other[0].tolist()) < {5, 6, 7, 8}
    assert not torch.equal(_prepare.scrambled(torch.zeros(1, 4)), torch.zeros(1, 4))
