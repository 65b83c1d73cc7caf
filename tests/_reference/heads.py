"""Small heads of every kind, and slow, obvious numpy versions of them."""

from __future__ import annotations

import math

import numpy as np
import torch

from sk_calex.branches._heads import BranchHead, build_head

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
