"""The heads that pool positions by prototypes, and how prototypes start from data."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from ._layers import (
    BranchHead,
    WeightedBatchNorm,
    divide_by_norm,
    draw,
    integer,
    integers,
    linear,
    max_over_positions,
    pointwise,
    seeded,
    trunk,
)

__all__ = ["PrototypeAugmentedHead", "PrototypeHead"]

# Cosines divide by a norm of at least this, so an all-zero position has cosine 0 and a
# bounded gradient. After batch normalisation norms are of order sqrt(C).
_NORM_FLOOR = 1e-3
# Spread of the extra prototypes around their class mean, relative to its norm.
_JITTER = 0.1


class PrototypePooling(nn.Module):
    """Pool positions by their likeness to M learned directions; see `PrototypeHead`.

    Computed on ``s = r / t``, so that the temperature costs (M, d) + (n, M) products
    and not (n, L, M): ``q = t * sum_n softmax_n(s) s``.
    """

    keys: Tensor | None
    temperature: Tensor | None

    def __init__(
        self,
        dim: int,
        n_prototypes: int,
        rank: int,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        # Features after a ReLU lie in the positive orthant: so do the first prototypes.
        drawn = torch.empty(n_prototypes, dim).normal_(generator=generator).abs_()
        self.prototypes = nn.Parameter(drawn)
        self.log_t = nn.Parameter(torch.tensor(math.log(temperature)))
        self.values: nn.Linear | None = None
        if rank > 0:
            self.values = draw(skip_init(nn.Linear, dim, rank, bias=False), generator)
        self.out_features = n_prototypes * (1 + rank)
        self.register_buffer("keys", None)
        self.register_buffer("temperature", None)

    def _scaled(self) -> tuple[Tensor, Tensor]:
        t = self.log_t.exp()
        return F.normalize(self.prototypes, dim=1, eps=_NORM_FLOOR) / t, t

    def forward(self, u: Tensor) -> Tensor:
        keys, t = self.keys, self.temperature
        if keys is None or t is None:
            keys, t = self._scaled()
        positions = u.flatten(2).transpose(1, 2)
        s = divide_by_norm(F.linear(positions, keys), positions, _NORM_FLOOR)
        a = s.softmax(1)
        q = (a * s).sum(1) * t
        if self.values is None:
            return q
        v = a.transpose(1, 2) @ self.values(positions)
        return torch.cat([q, v.flatten(1)], 1)

    def fold_(self) -> None:
        """Normalise the prototypes once and for all."""
        if self.keys is None:
            self.keys, self.temperature = self._scaled()
            del self.prototypes, self.log_t


class _PrototypeBase(BranchHead):
    """Run a body, pool by prototypes, normalise, and classify linearly."""

    moments = False  # whether mean and maximum of the body's output join the pooled
    body: nn.Sequential
    pool: PrototypePooling
    norm: nn.LayerNorm
    classifier: nn.Linear

    def _assemble(
        self,
        body: nn.Sequential,
        dim: int,
        n_prototypes: int | None,
        rank: int,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        if n_prototypes is None:
            n_prototypes = 2 * self.n_classes
        if not (isinstance(temperature, Real) and 0 < temperature < math.inf):
            raise ValueError(
                f"temperature must be a finite number > 0, got {temperature!r}."
            )
        self.body = body
        self.pool = PrototypePooling(
            dim,
            integer("n_prototypes", n_prototypes),
            integer("rank", rank, 0),
            float(temperature),
            generator,
        )
        n_features = self.pool.out_features + (2 * dim if self.moments else 0)
        self.norm = nn.LayerNorm(n_features)
        self.classifier = linear(n_features, self.n_classes, generator)

    def _logits(self, x: Tensor) -> Tensor:
        u = self.body(x)
        h = self.pool(u)
        if self.moments:
            h = torch.cat([u.mean((2, 3)), max_over_positions(u), h], 1)
        return self.classifier(self.norm(h))

    @torch.no_grad()
    def init_from_data(
        self,
        x: Tensor,
        y: Tensor,
        sample_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Initialise the prototypes at the class means of the body's present output.

        Parameters
        ----------
        x : Tensor of shape (n, *feature_shape)
            Features, in the head's dtype; all are in memory at once.
        y : Tensor of int64, shape (n,)
            Classes in 0..n_classes - 1.
        sample_weight : Tensor of shape (n,), default=None
            Weights >= 0; integers mean repetition.
        generator : torch.Generator, default=None
            Draws the jitter; None: a fresh one with seed 0.

        Raises
        ------
        ValueError
            If the shapes differ, a class is out of range or no weight is positive.

        Notes
        -----
        Our definition. Prototype m starts at the mean of class ``m mod C``; all but
        the first of a class, and classes without a sample (at the mean of all
        classes), get normal jitter of relative size 0.1. With fewer prototypes than
        classes it starts at the mean of the classes c with ``c mod M = m``. Means are
        over rows and positions, with this batch's own normalisation statistics; the
        running statistics are left alone.
        """
        n, n_classes = x.shape[0], self.n_classes
        w = x.new_ones(n) if sample_weight is None else sample_weight.to(x)
        if y.shape != (n,) or w.shape != (n,):
            raise ValueError(
                f"x holds {n} rows, so y and sample_weight must have shape ({n},), got "
                f"{tuple(y.shape)} and {tuple(w.shape)}."
            )
        if n == 0 or not bool((w >= 0).all()) or not bool((w > 0).any()):
            raise ValueError("sample_weight must be >= 0 and > 0 for at least one row.")
        if int(y.min()) < 0 or int(y.max()) >= n_classes:
            raise ValueError(
                f"y must lie in 0..{n_classes - 1}, got {int(y.min())}..{int(y.max())};"
                " encode the labels first."
            )
        # A copy of the body: its statistics and mode move, the head's must not.
        body = copy.deepcopy(self.body).train()
        for module in body.modules():
            if isinstance(module, WeightedBatchNorm):
                module.row_weights = w
        pooled = body(self._as_map(x)).mean((2, 3))
        drawn = self.pool.prototypes
        means, absent = _class_means(pooled.cpu(), y.cpu(), w.cpu(), n_classes)
        starts, jittered = _assign_means(means, absent, len(drawn))
        noise = torch.empty_like(starts).normal_(generator=seeded(generator))
        size = _JITTER * starts.norm(dim=1, keepdim=True) / math.sqrt(starts.shape[1])
        starts = torch.where(jittered[:, None], starts + size * noise, starts)
        # A class whose features are all zero has no direction: keep the drawn one.
        usable = (starts.norm(dim=1, keepdim=True) > 1e-6).to(drawn.device)
        drawn.copy_(torch.where(usable, starts.to(drawn), drawn))


def _class_means(
    pooled: Tensor, y: Tensor, w: Tensor, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Return class means (C, d), of all classes where one is absent, and which are."""
    pooled, w = pooled.double(), w.double()
    counts = w.new_zeros(n_classes).index_add_(0, y, w)
    sums = w.new_zeros(n_classes, pooled.shape[1])
    sums.index_add_(0, y, w[:, None] * pooled)
    absent = counts == 0
    means = sums / torch.where(absent, 1.0, counts)[:, None]
    means[absent] = means[~absent].mean(0)
    return means, absent


def _assign_means(means: Tensor, absent: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Assign C class means to M prototypes; also say which of these to jitter."""
    n_classes = len(means)
    if m < n_classes:
        means = torch.stack([means[i::m].mean(0) for i in range(m)])
        return means, torch.zeros(m, dtype=torch.bool)
    index = torch.arange(m)
    of_class = index % n_classes
    return means[of_class], (index >= n_classes) | absent[of_class]


class PrototypeHead(_PrototypeBase):
    """Project, pool by prototypes alone, and classify linearly.

    Parameters
    ----------
    feature_shape, n_classes
        As of `BranchHead`.
    dim : int, default=64
        Channels d of the projection.
    n_prototypes : int or None, default=None
        M; None: ``2 * n_classes``.
    rank : int, default=0
        Size of the low-rank summary of each prototype; 0: none.
    temperature : float, default=0.3
        Start of t, which is learned.
    generator : torch.Generator
        Source of the initial parameters.

    Notes
    -----
    The pooling is named by Aperstein & Apartsin (2026) and not defined there; the
    formulas are our definition. With u_n in R^d at position n, prototypes p_m and a
    rank x d matrix V:

        u      = ReLU(BN(W x))
        r[n,m] = <u_n, p_m> / (max(|u_n|, 0.001) max(|p_m|, 0.001))
        a[n,m] = softmax over n of r[n,m] / t
        q_m    = sum_n a[n,m] r[n,m],    v_m = sum_n a[n,m] V u_n
        logits = Linear(LayerNorm([q_1..q_M ; v_1..v_M]))

    Examples
    --------
    >>> import torch
    >>> from sk_calex.branches._heads import build_head
    >>> head = build_head("prototype", (16, 4, 4), 10)
    >>> head(torch.zeros(2, 16, 4, 4)).shape
    torch.Size([2, 10])
    """

    full_batch_rate: ClassVar[float] = 1e-2

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        dim: int = 64,
        n_prototypes: int | None = None,
        rank: int = 0,
        temperature: float = 0.3,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        dim = integer("dim", dim)
        body = nn.Sequential(pointwise(self.in_channels, dim, generator))
        self._assemble(body, dim, n_prototypes, rank, temperature, generator)


class PrototypeAugmentedHead(_PrototypeBase):
    """Run a light trunk and pool by prototypes, mean and maximum: CalexNet's head.

    Parameters
    ----------
    feature_shape, n_classes
        As of `BranchHead`.
    widths : tuple of int, default=(96, 128)
        Channels of the trunk, which is `ConvHead`'s. Empty: no trunk, but the
        projection of `PrototypeHead` to ``dim`` channels.
    dim : int, default=64
        Channels of that projection; unused with a trunk, whose last width counts.
    n_prototypes, rank, temperature
        As of `PrototypeHead`.
    generator : torch.Generator
        Source of the initial parameters.

    Notes
    -----
    Named by Aperstein & Apartsin (2026) and not defined there; our definition. With u
    the trunk's output and q, v as in `PrototypeHead`:

        logits = Linear(LayerNorm([mean_n u_n ; max_n u_n ; q_1..q_M ; v_1..v_M]))

    Examples
    --------
    >>> import torch
    >>> from sk_calex.branches._heads import build_head
    >>> head = build_head("prototype_augmented", (16, 8, 8), 10, widths=(24, 32))
    >>> head(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 10])
    """

    moments = True

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        widths: Sequence[int] = (96, 128),
        dim: int = 64,
        n_prototypes: int | None = None,
        rank: int = 0,
        temperature: float = 0.3,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        dim, widths = integer("dim", dim), integers("widths", widths, 0)
        if widths:
            body, dim = trunk(self.feature_shape, widths, generator), widths[-1]
        else:
            body = nn.Sequential(pointwise(self.in_channels, dim, generator))
        self._assemble(body, dim, n_prototypes, rank, temperature, generator)
