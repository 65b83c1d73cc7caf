"""What a module gives as its answer: logits, one of them, probabilities, in parts."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone
from tests._models import TinyNet, images

X = images(40)
TAPS = ["net.stem"]


class Ending(nn.Module):
    """A network, and what is done with its logits."""

    def __init__(self, end, n_outputs=4):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                OrderedDict(
                    stem=nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.Tanh()),
                    head=nn.Sequential(nn.Flatten(), nn.Linear(54, n_outputs)),
                )
            )
        self.end = end

    def forward(self, x):
        return self.end(self.net(x))


def logits_of(module):
    with torch.no_grad():
        return module.eval()(torch.from_numpy(X).float() / 255).numpy()


def one_logit(squeezed=False):
    """A network with one logit, positive for half of the images, and the logits."""
    plain = logits_of(Ending(lambda z: z))
    middle = float(np.median(plain[:, 0] - plain[:, 1]))

    def end(z):
        z = z[:, :1] - z[:, 1:2] - middle
        return z.squeeze(-1) if squeezed else z

    return Ending(end), plain[:, 0] - plain[:, 1] - middle


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_logit_is_that_of_the_second_of_two_classes(squeezed):
    module, z = one_logit(squeezed)
    assert 0.3 < (z > 0).mean() < 0.7
    backbone = FrozenBackbone(module, TAPS, classes=["no", "yes"]).fit(X)
    assert backbone.layout_.n_outputs == 2
    columns = backbone.layout_.block(backbone.transform(X), 1)
    expected = np.stack([0 * z, z], 1)
    np.testing.assert_allclose(columns, expected, rtol=1e-4, atol=1e-6)
    proba = backbone.predict_proba(X)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-5)
    np.testing.assert_allclose(proba.sum(1), 1)
    sure = np.abs(z) > 1e-5
    labels = backbone.predict(X[sure])
    np.testing.assert_array_equal(labels, np.where(z[sure] > 0, "yes", "no"))


def test_a_cascade_on_one_logit():
    module, z = one_logit()
    y = (z > 0).astype(int)
    branch = BranchClassifier("gap", max_iter=2, random_state=0)
    cascade = CascadeClassifier(FrozenBackbone(module, TAPS), branch=branch, margin=0)
    cascade.fit(X, y)
    last = cascade.stage_probabilities(X)[-1]
    np.testing.assert_allclose(last[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-5)


ENDS = {
    "softmax": (lambda z: z.softmax(1), 4),
    "layer": (nn.Softmax(dim=1), 4),
    "sigmoid": (torch.sigmoid, 1),
    "sigmoid, squeezed": (lambda z: torch.sigmoid(z).squeeze(1), 1),
    "sigmoid, in place": (lambda z: z.sigmoid_(), 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_probabilities_are_noticed_and_taken_as_such(name):
    end, n = ENDS[name]
    module = Ending(end, n)
    with pytest.warns(UserWarning, match=r"ends in a softmax.*outputs='prob"):
        FrozenBackbone(module, TAPS).fit(X)
    FrozenBackbone(module, TAPS, outputs="logits").fit(X)  # no warning
    backbone = FrozenBackbone(module, TAPS, outputs="probabilities").fit(X)
    expected = logits_of(module)
    if n == 1:
        expected = np.stack([1 - expected.ravel(), expected.ravel()], 1)
    np.testing.assert_allclose(
        backbone.predict_proba(X), expected, rtol=1e-4, atol=1e-6
    )


def test_numbers_that_are_no_probabilities():
    FrozenBackbone(Ending(lambda z: z.tanh() / 2 + 0.5, 1), TAPS).fit(X)  # no sigmoid
    FrozenBackbone(Ending(torch.sigmoid), TAPS).fit(X)  # no sum of 1
    message = (
        "outputs='probabilities', but the module gives numbers that are not from 0"
    )
    for end, n in ((torch.sigmoid, 4), (lambda z: z + 2, 1), (lambda z: z, 4)):
        with pytest.raises(ValueError, match=message):
            FrozenBackbone(Ending(end, n), TAPS, outputs="probabilities").fit(X)


def test_a_probability_of_0_stays_finite():
    module = Ending(lambda z: F.one_hot(z.argmax(1), 4).float())
    backbone = FrozenBackbone(module, TAPS, outputs="probabilities").fit(X)
    assert np.isfinite(backbone.transform(X)).all()
    np.testing.assert_allclose(backbone.predict_proba(X), logits_of(module), atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda z: {"loss": None, "logits": z}, "logits"),
        (lambda z: SimpleNamespace(logits=z), "logits"),
        (lambda z: (z * 2, z), 1),
        (lambda z: [z, z * 2], 0),
    ],
    ids=["dict", "object", "tuple", "list"],
)
def test_logits_are_taken_out_of_what_the_module_returns(wrap, output):
    module = Ending(wrap)
    plain = FrozenBackbone(Ending(lambda z: z), TAPS).fit(X)
    backbone = FrozenBackbone(module, TAPS, output=output).fit(X)
    np.testing.assert_array_equal(backbone.transform(X), plain.transform(X))
    np.testing.assert_array_equal(backbone.predict_proba(X), plain.predict_proba(X))


def test_what_is_needed_is_said_where_the_output_is_no_tensor():
    with pytest.raises(ValueError, match=r"keys \['logits'\]; say .* output='logits'"):
        FrozenBackbone(Ending(lambda z: {"logits": z}), TAPS).fit(X)
    with pytest.raises(ValueError, match=r"output='scores' is no part.*\['logits'\]"):
        FrozenBackbone(Ending(lambda z: {"logits": z}), TAPS, output="scores").fit(X)


# Precision


def test_autocast_of_the_caller_changes_nothing(tmp_path):
    net = TinyNet().eval()
    expected = FrozenBackbone(net, ["stem"]).fit(X).transform(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone = FrozenBackbone(net, ["stem"], cache=tmp_path).fit(X)
        np.testing.assert_array_equal(backbone.transform(X), expected)
        proba = backbone.predict_proba(X)
    np.testing.assert_array_equal(backbone.transform(X), expected)
    np.testing.assert_array_equal(backbone.predict_proba(X), proba)


def test_amp_lowers_the_precision_and_counts_in_the_fingerprint():
    net = TinyNet().eval()
    full = FrozenBackbone(net, ["stem"], pool=None).fit(X)
    low = FrozenBackbone(net, ["stem"], pool=None, amp="bfloat16").fit(X)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = net(torch.from_numpy(X).float() / 255).float().numpy()
    got = low.layout_.block(low.transform(X), 1)
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=0.02)
    assert not np.array_equal(low.transform(X), full.transform(X))
    np.testing.assert_allclose(low.transform(X), full.transform(X), rtol=0.1, atol=0.1)
    assert low.fingerprint_ != full.fingerprint_
    again = low.set_params(amp=None)
    np.testing.assert_array_equal(again.transform(X), full.transform(X))
    assert again.fingerprint_ == full.fingerprint_


class Text(nn.Module):
    """Token ids of a large vocabulary in, logits out."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(30522, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(self.mix(self.embed(ids.long())).mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_token_ids_are_never_cast(dtype):
    torch.manual_seed(0)
    module = Text().to(dtype).eval()
    ids = np.random.default_rng(0).integers(0, 30500, (40, 12))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).float().numpy()
    backbone = FrozenBackbone(module, ["mix"]).fit(ids)
    got = backbone.layout_.block(backbone.transform(ids), 1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.01)
    floats = FrozenBackbone(module, ["mix"], preprocess=torch.Tensor.float)
    if dtype == torch.float32:
        np.testing.assert_array_equal(floats.fit(ids).predict(ids), expected.argmax(1))
    else:
        with pytest.raises(ValueError, match=r"X holds whole numbers, such as .* ids"):
            floats.fit(ids)
