"""The heads against slow, obvious numpy versions, and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sk_calex.branches._heads import (
    HEADS,
    BranchHead,
    PrototypeAugmentedHead,
    WeightedBatchNorm,
    build_head,
    fuse_for_inference,
)
from tests._reference.heads import (
    ALL,
    CLASSES,
    PARAMS,
    make,
    normal,
    seeded,
    slow_logits,
)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "shape"), ALL)
def test_golden(name, shape, train):
    head = make(name, shape).train(train)
    x = normal(5, *shape, seed=7)
    expected = slow_logits(name, head, x, train)
    np.testing.assert_allclose(head(x).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 5, 5), (6, 3)])
def test_golden_without_trunk_and_rank(shape):
    head = make("prototype_augmented", shape, widths=(), dim=4, rank=0)
    x = normal(4, *shape)
    expected = slow_logits("prototype_augmented", head, x, True)
    np.testing.assert_allclose(head(x).detach(), expected, rtol=1e-9, atol=1e-9)


# --- every head ----------------------------------------------------------------------


def test_registry_holds_the_documented_heads():
    assert set(HEADS) == set(PARAMS)


@pytest.mark.parametrize("shape", [(16, 8, 8), (9, 16), (16,)])
@pytest.mark.parametrize("name", PARAMS)
def test_defaults(name, shape):
    head = build_head(name, shape, 10)
    assert isinstance(head, HEADS[name])
    assert head.training
    assert head.feature_shape == shape
    assert head.n_classes == 10
    assert head.dtype == torch.float32
    assert head.device.type == "cpu"
    assert f"feature_shape={shape}, n_classes=10" in repr(head)
    assert head(torch.randn(4, *shape, generator=seeded())).shape == (4, 10)
    assert head.eval()(torch.zeros(0, *shape)).shape == (0, 10)


def test_default_sizes():
    head = build_head("prototype_augmented", (64, 8, 8), 20)
    assert isinstance(head, PrototypeAugmentedHead)
    assert [block.layer.out_channels for block in head.body] == [96, 128]
    assert head.pool.prototypes.shape == (40, 128)
    assert head.classifier.in_features == 128 + 128 + 40
    assert build_head("prototype", (64, 8, 8), 20).pool.prototypes.shape == (40, 64)


@pytest.mark.parametrize(("name", "shape"), ALL)
def test_permuting_rows_permutes_logits(name, shape):
    head = make(name, shape)
    x = normal(6, *shape)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for mode in (True, False):
        head.train(mode)
        torch.testing.assert_close(head(x[order]), head(x)[order])


@pytest.mark.parametrize("name", PARAMS)
def test_rows_do_not_meet_in_eval_mode(name):
    head = make(name, (3, 6, 6)).eval()
    x = normal(4, 3, 6, 6)
    torch.testing.assert_close(head(x)[2:3], head(x[2:3]))


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize(("name", "shape"), ALL)
def test_gradients_are_finite_where_nothing_varies(name, shape, value):
    head = build_head(name, shape, CLASSES, **PARAMS[name])
    for mode in (True, False):
        head.train(mode).zero_grad()
        x = torch.full((4, *shape), value, requires_grad=True)
        loss = F.cross_entropy(head(x), torch.tensor([0, 1, 2, 0]))
        loss.backward()
        assert torch.isfinite(loss)
        for tensor in [x, *head.parameters()]:
            assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("name", PARAMS)
def test_learns_from_flat_vectors(name):
    y = torch.arange(30) % CLASSES
    x = 3 * F.one_hot(y, 4) + torch.randn(30, 4, generator=seeded())
    head = build_head(name, (4,), CLASSES)
    head.init_from_data(x, y)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
    assert (head.eval()(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("name", ["conv", "prototype", "prototype_augmented"])
def test_channels_last_stays(name):
    head = make(name, (3, 6, 6))
    x = normal(4, 3, 6, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    assert head.body(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(head(last), head(x))


@pytest.mark.parametrize("name", PARAMS)
def test_compiles_to_one_graph(name):
    torch.compiler.reset()  # the heads share one forward, and its compilation limit
    head = make(name, (3, 6, 6))
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    x = normal(4, 3, 6, 6)
    torch.testing.assert_close(compiled(x), head(x))
    head.set_row_weights(torch.tensor([1.0, 2.0, 0.0, 3.0]))
    torch.testing.assert_close(compiled(x), head(x))


# --- randomness ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMS)
def test_the_generator_alone_decides(name):
    def parameters(generator):
        head = build_head(name, (3, 6, 6), CLASSES, generator=generator, **PARAMS[name])
        y = torch.tensor([0, 1, 2, 0])
        head.init_from_data(normal(4, 3, 6, 6).float(), y, generator=generator)
        return nn.utils.parameters_to_vector(head.parameters())

    before = torch.get_rng_state()
    first, default = parameters(seeded(1)), parameters(None)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert torch.equal(parameters(seeded(1)), first)
        assert torch.equal(parameters(None), default)
    assert not torch.equal(parameters(seeded(2)), first)


def test_initial_scale():
    head = build_head("conv", (50, 8, 8), 10, widths=(200,))
    weight = head.body[0].layer.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (50 * 9)), rel=0.05)
    bound = 1 / math.sqrt(400)
    assert 0.95 * bound < head.classifier.weight.abs().max() <= bound
    assert not head.classifier.bias.any()


# --- weights mean repetition ---------------------------------------------------------

WEIGHTS = torch.tensor([2, 0, 1, 3, 1])


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("shape", [(3, 6, 6), (4, 3), (4,)])
@pytest.mark.parametrize("name", PARAMS)
def test_integer_weights_are_repetition(name, shape, momentum):
    weighted, repeated = make(name, shape), make(name, shape)
    x, y = normal(5, *shape), torch.tensor([0, 1, 2, 0, 1])
    rows = torch.repeat_interleave(torch.arange(5), WEIGHTS)
    for head in (weighted, repeated):
        head.set_momentum(momentum)
    weighted.set_row_weights(WEIGHTS)

    logits, expected = weighted(x), repeated(x[rows])
    torch.testing.assert_close(logits[rows], expected)
    (WEIGHTS * F.cross_entropy(logits, y, reduction="none")).sum().backward()
    F.cross_entropy(expected, y[rows], reduction="sum").backward()
    for (key, a), b in zip(
        weighted.named_parameters(), repeated.parameters(), strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, key=key: f"{key}: {m}")
    for a, b in zip(weighted.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b)

    weighted.set_row_weights(None)
    torch.testing.assert_close(weighted(x[rows]), repeated(x[rows]))


@given(
    weights=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    positions=st.integers(1, 3),
    offset=st.sampled_from([0.0, 1e3]),
)
@settings(max_examples=50, deadline=None)
def test_norm_integer_weights_are_repetition(weights, positions, offset):
    x = offset + normal(len(weights), 2, positions)
    w = torch.tensor(weights)
    weighted, repeated = WeightedBatchNorm(2).double(), WeightedBatchNorm(2).double()
    weighted.row_weights = w
    rows = torch.repeat_interleave(torch.arange(len(w)), w)
    out = weighted(x)
    assert torch.isfinite(out).all()
    if len(rows):
        torch.testing.assert_close(out[rows], repeated(x[rows]), rtol=1e-6, atol=1e-6)
    for a, b in zip(weighted.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("shape", [(6, 2, 4, 3), (6, 2, 5), (6, 2)])
def test_norm_without_weights_is_torchs(shape, momentum):
    x = 2 + normal(*shape)
    ones = WeightedBatchNorm(2, momentum=momentum).double()
    ours = WeightedBatchNorm(2, momentum=momentum).double()
    ones.row_weights = torch.ones(6)
    theirs = nn.BatchNorm1d(2, momentum=momentum).double()
    if len(shape) == 4:
        theirs = nn.BatchNorm2d(2, momentum=momentum).double()
    expected = theirs(x)
    assert torch.equal(ours(x), expected)
    torch.testing.assert_close(ones(x), expected)
    for norm in (ours, ones):
        torch.testing.assert_close(norm.running_mean, theirs.running_mean)
        torch.testing.assert_close(norm.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("weights", [None, [1.0], [0.0], [0.4]])
def test_norm_learns_no_statistics_from_one_value(weights):
    norm = WeightedBatchNorm(2)
    nn.init.constant_(norm.bias, 0.7)
    norm.row_weights = None if weights is None else torch.tensor(weights)
    out = norm(torch.tensor([[5.0, -3.0]]))
    assert torch.isfinite(out).all()
    if weights != [0.0]:
        torch.testing.assert_close(out, torch.full((1, 2), 0.7))
    assert not norm.running_mean.any()
    assert (norm.running_var == 1).all()


def test_norm_variance_correction_is_capped():
    # W = 1.2: W / (W - 1) would be 6; the variance is 0.25.
    norm = WeightedBatchNorm(1, momentum=1.0)
    norm.row_weights = torch.tensor([0.6, 0.6])
    norm(torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(norm.running_var, torch.tensor([0.5]))


def test_norm_ignores_weights_in_eval_mode():
    norm = WeightedBatchNorm(2).eval()
    x = normal(3, 2).float()
    expected = norm(x)
    norm.row_weights = torch.tensor([1.0, 0.0, 5.0])
    assert torch.equal(norm(x), expected)


def test_weights_must_fit_the_batch():
    head = make("gap", (4,))
    with pytest.raises(ValueError, match=r"one number for each row.*\(2, 1\)"):
        head.set_row_weights(torch.ones(2, 1))
    head.set_row_weights(torch.ones(2))
    with pytest.raises(ValueError, match="row_weights hold 2 rows but the batch hold"):
        head(normal(3, 4))


@pytest.mark.parametrize("momentum", [0, -0.1, 1.1, math.nan])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\]"):
        make("gap", (4,)).set_momentum(momentum)


# --- fusing --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), ALL)
def test_fused_is_the_same_function(name, shape):
    head = make(name, shape).train()
    state = {key: value.clone() for key, value in head.state_dict().items()}
    x = normal(6, *shape)
    head.set_row_weights(torch.ones(3))
    fused = fuse_for_inference(head)

    assert not fused.training
    assert not any(isinstance(m, WeightedBatchNorm) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    expected = head.eval()(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.train()(x), expected, rtol=1e-9, atol=1e-9)
    again = fuse_for_inference(fused)
    torch.testing.assert_close(again(x), expected, rtol=1e-9, atol=1e-9)

    assert all(p.requires_grad for p in head.parameters())
    for key, value in head.state_dict().items():
        assert torch.equal(value, state[key])
    single = fused.float()(x.float()).double()
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4)


def test_fused_keeps_no_gradients():
    head = make("conv", (3, 6, 6))
    head(normal(4, 3, 6, 6)).sum().backward()
    assert all(p.grad is None for p in fuse_for_inference(head).parameters())
    assert all(p.grad is not None for p in head.parameters())


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "n_classes", "params", "error", "message"),
    [
        (
            "gpa",
            (4,),
            3,
            {},
            ValueError,
            r"name must be one of \['conv', 'conv1d'.*gpa",
        ),
        ("gap", (4,), 1, {}, ValueError, "n_classes must be an integer >= 2, got 1"),
        ("gap", (4,), 2.0, {}, ValueError, r"n_classes .* got 2\.0"),
        ("gap", (4,), True, {}, ValueError, "n_classes .* got True"),
        ("gap", 4, 3, {}, ValueError, "feature_shape must be a tuple of 1 to 3"),
        ("gap", (), 3, {}, ValueError, "feature_shape must be a tuple of 1 to 3"),
        ("gap", (1, 2, 3, 4), 3, {}, ValueError, "feature_shape must be a tuple"),
        ("gap", (3, 0, 2), 3, {}, ValueError, r"feature_shape\[1\] .* >= 1, got 0"),
        ("gap", (4,), 3, {"dim": 2}, TypeError, "no parameter 'dim'; it takes none"),
        (
            "prototype",
            (4,),
            3,
            {"wide": 1, "Dim": 1},
            TypeError,
            "no parameter 'Dim', 'wide'; it takes dim, n_prototypes, rank, temperature",
        ),
        ("conv", (4,), 3, {"widths": ()}, ValueError, "widths .* at least 1"),
        ("conv", (4,), 3, {"widths": (8, 0)}, ValueError, r"widths\[1\] must be"),
        ("conv", (4,), 3, {"widths": 8}, ValueError, "widths must be a tuple"),
        ("conv1d", (4,), 3, {"width": 0}, ValueError, "width must be an integer >= 1"),
        ("prototype", (4,), 3, {"dim": 0}, ValueError, "dim must be"),
        ("prototype", (4,), 3, {"n_prototypes": 0}, ValueError, "n_prototypes must"),
        ("prototype", (4,), 3, {"rank": -1}, ValueError, "rank .* >= 0, got -1"),
        ("prototype", (4,), 3, {"temperature": 0}, ValueError, "temperature .* got 0"),
        ("prototype", (4,), 3, {"temperature": "a"}, ValueError, "temperature"),
        ("prototype", (4,), 3, {"temperature": math.inf}, ValueError, "finite"),
    ],
)
def test_build_errors(name, shape, n_classes, params, error, message):
    with pytest.raises(error, match=message):
        build_head(name, shape, n_classes, **params)


def test_numpy_integers_and_lists_are_accepted():
    shape = [np.int64(3), np.int64(6), np.int64(6)]
    head = build_head("conv", shape, np.int64(3), widths=[np.int32(4)])
    assert head.feature_shape == (3, 6, 6)
    assert head(torch.zeros(2, 3, 6, 6)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 108), (3, 6, 6)])
def test_features_must_have_the_built_shape(shape):
    head = build_head("gap", (3, 6, 6), CLASSES)
    with pytest.raises(
        ValueError, match=r"takes features of shape \(n, 3, 6, 6\), got"
    ):
        head(torch.zeros(shape))


def test_generator_must_be_one():
    with pytest.raises(
        ValueError, match=r"a torch.Generator on the CPU or None, got 3"
    ):
        build_head("gap", (4,), 3, generator=3)


def test_a_head_of_ones_own():
    class LastPosition(BranchHead):
        def _logits(self, x):
            return x[:, :, -1, -1]

    x = normal(2, 5, 3)
    assert torch.equal(LastPosition((5, 3), 3)(x), x[:, -1])
    with pytest.raises(NotImplementedError):
        BranchHead((5, 3), 3)(x)
