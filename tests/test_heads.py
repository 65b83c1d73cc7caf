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

from sk_calex.heads import (
    HEADS,
    BranchHead,
    PrototypeAugmentedHead,
    PrototypeHead,
    WeightedBatchNorm,
    build_head,
    fuse_for_inference,
)

CLASSES = 3
#: Small versions of every head.
PARAMS = {
    "gap": {},
    "sdn": {},
    "conv1d": {"width": 5},
    "conv": {"widths": (4, 6)},
    "prototype": {"dim": 4, "n_prototypes": 5, "rank": 2},
    "prototype_augmented": {"widths": (4, 6), "rank": 2},
}
#: Odd map (stride 2, pooled cells overlap), small map (stride 1), tokens (more than 16
#: and few), one token, a flat vector.
SHAPES = [(3, 7, 5), (3, 4, 6), (19, 3), (2, 3), (1, 4), (4,)]
ALL = [(name, shape) for name in PARAMS for shape in SHAPES]
WITH_PROTOTYPES = ["prototype", "prototype_augmented"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def make(name: str, shape: tuple[int, ...], seed: int = 0, **params) -> BranchHead:
    """A float64 head whose every parameter and statistic is off its default."""
    params = PARAMS[name] | params
    head = build_head(name, shape, CLASSES, generator=seeded(seed), **params).double()
    generator = seeded(seed + 1)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            parameter += 0.3 * noise
        for key, buffer in head.named_buffers():
            buffer.uniform_(0.5, 2.0, generator=generator)
            if key.endswith("mean"):
                buffer -= 1.0
    return head


# --- slow versions -------------------------------------------------------------------


def slow_norm(x, state, key, train, eps=1e-5):
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        mean, var = state[f"{key}.running_mean"][c], state[f"{key}.running_var"][c]
        if train:
            mean, var = x[:, c].mean(), x[:, c].var()
        scaled = (x[:, c] - mean) / math.sqrt(var + eps)
        out[:, c] = scaled * state[f"{key}.weight"][c] + state[f"{key}.bias"][c]
    return out


def slow_conv3x3(x, weight, stride):
    n, _, height, width = x.shape
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    out = np.zeros((n, len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    r, c = i * stride + di, j * stride + dj
                    if 0 <= r < height and 0 <= c < width:
                        out[:, :, i, j] += (
                            x[:, :, r, c] @ weight[:, :, di + 1, dj + 1].T
                        )
    return out


def slow_pointwise(x, weight):
    out = np.zeros((x.shape[0], len(weight), *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[:, :, i, j] = x[:, :, i, j] @ weight.T
    return out


def slow_trunk(x, state, is_map, train):
    depth = 0
    while (weight := state.get(f"body.{depth}.layer.weight")) is not None:
        if weight.ndim == 4:
            stride = 2 if depth == 0 and min(x.shape[2:]) > 4 else 1
            x = slow_conv3x3(x, weight, stride)
        else:
            x = slow_pointwise(x, weight)
        x = np.maximum(slow_norm(x, state, f"body.{depth}.norm", train), 0)
        depth += 1
    return x


def slow_moments(u):
    return np.concatenate([u.mean((2, 3)), u.max((2, 3))], axis=1)


def slow_prototypes(u, state):
    p, t = state["pool.prototypes"], math.exp(state["pool.log_t"])
    values = state.get("pool.values.weight")
    pooled = []
    for row in u:
        positions = row.reshape(len(row), -1).T
        q, v = [], []
        for prototype in p:
            r = np.array(
                [
                    position
                    @ prototype
                    / max(np.linalg.norm(position), 1e-3)
                    / max(np.linalg.norm(prototype), 1e-3)
                    for position in positions
                ]
            )
            a = np.exp(r / t) / np.exp(r / t).sum()
            q.append(sum(a[n] * r[n] for n in range(len(r))))
            if values is not None:
                v.extend(sum(a[n] * (values @ positions[n]) for n in range(len(r))))
        pooled.append(q + v)
    return np.array(pooled)


def slow_cells(size, cells):
    return [
        slice(i * size // cells, math.ceil((i + 1) * size / cells))
        for i in range(cells)
    ]


def slow_sdn_pool(x, alpha, is_map):
    height, width = x.shape[2:]
    grid = (min(height, 4), min(width, 4)) if is_map else (min(height, 16), 1)
    out = np.empty((*x.shape[:2], *grid))
    for i, rows in enumerate(slow_cells(height, grid[0])):
        for j, columns in enumerate(slow_cells(width, grid[1])):
            cell = x[:, :, rows, columns]
            out[:, :, i, j] = alpha * cell.max((2, 3)) + (1 - alpha) * cell.mean((2, 3))
    return out.reshape(len(x), -1)


def slow_conv1d(x, weight):
    sequence = x.reshape(*x.shape[:2], -1)
    n, _, length = sequence.shape
    out = np.zeros((n, len(weight), length))
    for i in range(length):
        for d in (-1, 0, 1):
            if 0 <= i + d < length:
                out[:, :, i] += sequence[:, :, i + d] @ weight[:, :, d + 1].T
    return out[..., None]


def slow_logits(name, head, x, train):
    state = {key: value.detach().numpy() for key, value in head.state_dict().items()}
    x, is_map = x.numpy(), x.ndim == 4
    if not is_map:
        x = x.reshape(len(x), -1, x.shape[-1]).transpose(0, 2, 1)[..., None]
    if name == "gap":
        h = slow_norm(x, state, "norm", train).mean((2, 3))
    elif name == "sdn":
        h = slow_sdn_pool(x, state["alpha"], is_map)
    elif name == "conv1d":
        u = slow_conv1d(x, state["body.layer.weight"])
        h = np.maximum(slow_norm(u, state, "body.norm", train), 0).mean((2, 3))
    elif name == "conv":
        h = slow_moments(slow_trunk(x, state, is_map, train))
    else:
        u = slow_trunk(x, state, is_map, train)
        h = slow_prototypes(u, state)
        if name == "prototype_augmented":
            h = np.concatenate([slow_moments(u), h], axis=1)
        centred = h - h.mean(1, keepdims=True)
        h = centred / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        h = h * state["norm.weight"] + state["norm.bias"]
    return h @ state["classifier.weight"].T + state["classifier.bias"]


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
    with pytest.raises(ValueError, match=r"weights must be one number a row.*\(2, 1\)"):
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


# --- prototypes from data ------------------------------------------------------------


def class_means(head, x, y):
    """Slow class means of the body's output, normalised by the batch itself."""
    state = {key: value.detach().numpy() for key, value in head.state_dict().items()}
    x = x.numpy()
    if x.ndim < 4:
        x = x.reshape(len(x), -1, x.shape[-1]).transpose(0, 2, 1)[..., None]
    u = slow_trunk(x, state, True, True)
    means = []
    for c in range(CLASSES):
        positions = u[y.numpy() == c].transpose(0, 2, 3, 1).reshape(-1, u.shape[1])
        means.append(
            positions.mean(0) if len(positions) else np.full(u.shape[1], np.nan)
        )
    return np.array(means)


DATA_Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


@pytest.mark.parametrize("shape", [(3, 6, 6), (4, 3), (4,)])
@pytest.mark.parametrize("name", WITH_PROTOTYPES)
def test_prototypes_start_at_class_means(name, shape):
    head = make(name, shape, n_prototypes=2 * CLASSES + 1)
    x = normal(8, *shape)
    means = class_means(head, x, DATA_Y)
    buffers = [buffer.clone() for buffer in head.buffers()]
    head.eval()
    head.init_from_data(x, DATA_Y)

    prototypes = head.pool.prototypes.detach().numpy()
    np.testing.assert_allclose(prototypes[:CLASSES], means, rtol=1e-9)
    # The extra ones lie around the mean of their class, at about a tenth of its norm.
    for m in range(CLASSES, len(prototypes)):
        mean = means[m % CLASSES]
        away = np.linalg.norm(prototypes[m] - mean) / np.linalg.norm(mean)
        assert 0.01 < away < 0.3
    assert not head.training
    assert all(map(torch.equal, head.buffers(), buffers))
    assert head.pool.prototypes.requires_grad


def test_fewer_prototypes_than_classes_share():
    head = make("prototype", (4,), n_prototypes=2)
    x = normal(8, 4)
    means = class_means(head, x, DATA_Y)
    head.init_from_data(x, DATA_Y)
    expected = [(means[0] + means[2]) / 2, means[1]]
    np.testing.assert_allclose(head.pool.prototypes.detach(), expected, rtol=1e-9)


def test_absent_class_starts_near_the_mean_of_the_others():
    head = make("prototype", (4,), n_prototypes=CLASSES)
    x, y = normal(8, 4), torch.tensor([0, 2, 2, 0, 0, 2, 0, 0])
    overall = np.nanmean(class_means(head, x, y), axis=0)
    head.init_from_data(x, y)
    start = head.pool.prototypes.detach().numpy()[1]
    away = np.linalg.norm(start - overall) / np.linalg.norm(overall)
    assert 0.01 < away < 0.3


@pytest.mark.parametrize("name", WITH_PROTOTYPES)
def test_data_start_weights_and_order(name):
    x, shape = normal(8, 3, 6, 6), (3, 6, 6)
    w = torch.tensor([1, 0, 2, 3, 1, 1, 0, 2])
    rows = torch.repeat_interleave(torch.arange(8), w)
    order = torch.tensor([4, 1, 7, 3, 0, 6, 2, 5])

    def start(x, y, w=None, seed=5):
        head = make(name, shape)
        head.init_from_data(x, y, sample_weight=w, generator=seeded(seed))
        return head.pool.prototypes.detach()

    weighted = start(x, DATA_Y, w)
    torch.testing.assert_close(weighted, start(x[rows], DATA_Y[rows]))
    torch.testing.assert_close(weighted, start(x[order], DATA_Y[order], w[order]))
    assert torch.equal(weighted, start(x, DATA_Y, w))
    assert not torch.equal(weighted, start(x, DATA_Y, w, seed=6))


def test_features_without_direction_keep_the_drawn_prototypes():
    head = build_head("prototype", (4,), CLASSES)
    drawn = head.pool.prototypes.detach().clone()
    head.init_from_data(torch.zeros(6, 4), torch.arange(6) % CLASSES)
    assert torch.equal(head.pool.prototypes, drawn)
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("name", sorted(PARAMS.keys() - WITH_PROTOTYPES))
def test_data_start_changes_nothing_without_prototypes(name):
    head = make(name, (3, 6, 6))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.init_from_data(normal(8, 3, 6, 6), DATA_Y)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize(
    ("y", "w", "message"),
    [
        ([0, 1], None, r"y and sample_weight must have shape \(3,\), got \(2,\)"),
        ([0, 1, 2], [1.0], r"must have shape \(3,\), got \(3,\) and \(1,\)"),
        ([0, 1, 3], None, r"y must lie in 0..2, got 0..3; encode"),
        ([-1, 1, 2], None, r"y must lie in 0..2, got -1..2"),
        ([0, 1, 2], [0.0, 0.0, 0.0], "sample_weight must be >= 0 and > 0 for at"),
        ([0, 1, 2], [1.0, -1.0, 1.0], "sample_weight must be >= 0"),
        ([0, 1, 2], [1.0, math.nan, 1.0], "sample_weight must be >= 0"),
    ],
)
def test_data_start_errors(y, w, message):
    head = build_head("prototype", (4,), CLASSES)
    weight = None if w is None else torch.tensor(w)
    with pytest.raises(ValueError, match=message):
        head.init_from_data(torch.zeros(3, 4), torch.tensor(y), sample_weight=weight)


def test_data_start_needs_rows():
    head = build_head("prototype", (4,), CLASSES)
    with pytest.raises(ValueError, match="for at least one row"):
        head.init_from_data(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_temperature_is_learned():
    head = build_head("prototype", (3, 6, 6), CLASSES, temperature=0.5)
    assert isinstance(head, PrototypeHead)
    assert head.pool.log_t.exp().item() == pytest.approx(0.5)
    F.cross_entropy(head(normal(3, 3, 6, 6).float()), torch.arange(3)).backward()
    assert head.pool.log_t.grad.abs() > 0


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
