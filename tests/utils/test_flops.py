import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry

from sk_calex.backbone._stages import Stages
from sk_calex.utils import _flops
from sk_calex.utils._flop_formulas import all_formulas
from sk_calex.utils._flops import count_macs, depth_costs, flops_reduction
from tests._models import quantized

MACS = st.integers(0, 10**9)
COSTS = st.integers(0, 5).flatmap(
    lambda k: st.tuples(
        st.lists(MACS, min_size=k + 1, max_size=k + 1),
        st.lists(MACS, min_size=k, max_size=k),
    )
)


def test_macs_of_linear_and_convolution_equal_hand_counts():
    linear = nn.Linear(7, 5)
    assert count_macs(linear, torch.zeros(1, 7)) == 7 * 5
    assert count_macs(linear, torch.zeros(3, 7)) == 3 * 7 * 5
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    assert count_macs(conv, torch.zeros(1, 4, 8, 8)) == 4 * 4 * 6 * (4 // 2) * 9


def test_norms_activations_and_pools_count_nothing():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    assert count_macs(module, torch.zeros(1, 1, 4, 4)) == 16 * 2


@pytest.mark.parametrize("kind", ["attention", "encoder", "functional"])
def test_macs_of_attention_equal_hand_counts(kind):
    # In eval mode torch runs these in fused kernels, which its counter does not know.
    tokens, width, hidden = 5, 8, 12
    x = torch.randn(1, tokens, width)
    projections = tokens * 4 * width * width
    products = 2 * tokens * tokens * width
    feed_forward = 2 * tokens * width * hidden
    if kind == "attention":
        attention = nn.MultiheadAttention(width, 2, batch_first=True)
        got = count_macs(attention, x, x, x)
        assert got == projections + products
    elif kind == "encoder":
        layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
        assert count_macs(layer, x) == projections + products + feed_forward
    else:
        heads = x.view(1, tokens, 2, 4).transpose(1, 2)
        got = count_macs(F.scaled_dot_product_attention, heads, heads, heads)
        assert got == products


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    module.train()
    module[2].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    # One row: batch normalisation would refuse it in training mode.
    count_macs(module, torch.randn(1, 3))
    assert [m.training for m in module.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("inference", [True, False])
def test_macs_are_counted_on_ordinary_copies_whatever_the_caller_is_in(inference):
    def call(a, b):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        assert not a.is_inference()
        return a.add_(1) @ b["matrix"]

    with torch.inference_mode(inference):
        a, b = torch.zeros(2, 3), {"matrix": torch.zeros(3, 4)}
        assert count_macs(call, a, b) == 24
        assert count_macs(nn.Linear(3, 4), a) == 24
    assert not a.any()


@given(COSTS)
def test_depth_costs_equals_the_definition(macs):
    stages, heads = macs
    cost = depth_costs(stages, heads)
    assert cost.dtype == np.float64
    expected = [sum(stages[: k + 1]) + sum(heads[: k + 1]) for k in range(len(heads))]
    assert cost.tolist() == [*expected, sum(stages) + sum(heads)]
    assert np.all(np.diff(cost) >= 0)


def test_costs_without_heads_are_those_of_the_backbone():
    assert depth_costs([7], []).tolist() == [7.0]
    assert flops_reduction([0, 0], [7], []) == 0.0


@given(COSTS.filter(lambda macs: sum(macs[0]) > 0), st.data())
def test_flops_reduction_equals_the_definition(macs, data):
    stages, heads = macs
    depth = data.draw(st.lists(st.integers(0, len(heads)), min_size=1, max_size=8))
    costs = [
        sum(stages) + sum(heads)
        if d == len(heads)
        else sum(stages[: d + 1]) + sum(heads[: d + 1])
        for d in depth
    ]
    expected = 1 - sum(costs) / len(costs) / sum(stages)
    got = flops_reduction(depth, stages, heads)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert got <= 1
    assert flops_reduction(depth[::-1], stages, heads) == pytest.approx(got)


def test_reduction_is_negative_when_no_sample_exits():
    assert flops_reduction([1, 1], [60, 40], [10]) == pytest.approx(-0.1)
    assert flops_reduction(np.array([0, 1]), [60, 40], [10]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("stages", "heads", "message"),
    [
        ([1, 2], [1, 2], "stage_macs has 2 entries and head_macs 2"),
        ([[1, 2]], [1], r"stage_macs must be 1-D; got shape \(1, 2\)"),
        ([1, -2], [1], "stage_macs must be finite and not negative"),
        ([1, 2], [np.nan], "head_macs must be finite and not negative"),
        ([1, np.inf], [1], "stage_macs must be finite"),
    ],
)
def test_costs_of_wrong_lengths_or_values_are_refused(stages, heads, message):
    with pytest.raises(ValueError, match=message):
        depth_costs(stages, heads)
    with pytest.raises(ValueError, match=message):
        flops_reduction([0], stages, heads)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ([], "non-empty 1-D array of integers"),
        ([[0, 1]], r"got shape \(1, 2\)"),
        ([0.0, 1.0], "dtype float64"),
        ([True, False], "dtype bool"),
        ([0, 2], r"must lie in 0\.\.1 .* from 0 to 2"),
        ([-1, 0], "from -1 to 0"),
    ],
)
def test_depths_of_wrong_type_or_range_are_refused(depth, message):
    with pytest.raises(ValueError, match=message):
        flops_reduction(depth, [5, 5], [1])


def test_reduction_of_a_backbone_without_cost_is_refused():
    with pytest.raises(ValueError, match="stage_macs sums to 0"):
        flops_reduction([0], [0, 0], [1])


def test_threads_may_run_a_module_while_another_counts_it():
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)]).eval()
    x = torch.zeros(1, 4)
    stop, errors = threading.Event(), []

    def run():
        try:
            while not stop.is_set():
                with torch.no_grad():
                    module(x)
                copy = nn.Linear(4, 4)
                copy.register_forward_hook(lambda *_: None)
                copy(x)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    counts = {count_macs(module, x) for _ in range(100)}
    stop.set()
    for thread in threads:
        thread.join()
    assert counts == {20 * 16}
    assert errors == []


def test_counting_leaves_the_settings_of_attention_alone():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    before, seen = settings_of_attention(), []

    def call(x):
        seen.append(settings_of_attention())
        return attention(x, x, x)

    count_macs(call, torch.zeros(1, 4, 8))
    assert seen == [before]
    assert settings_of_attention() == before


def settings_of_attention():
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


# -- operators without a formula -------------------------------------------------------


@torch.library.custom_op("sk_calex_tests::project", mutates_args=())
def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A kernel of somebody's own, which torch cannot look into."""
    return x @ weight.T


class Project(nn.Linear):
    def forward(self, x):
        return project(x, self.weight)


class Hidden(nn.Linear):
    """Computes where torch does not see it."""

    def forward(self, x):
        return torch.from_numpy(x.numpy() @ self.weight.detach().numpy().T)


def test_layers_whose_operator_has_no_formula_are_named():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Project(3, 2)))
    message = r"sk_calex_tests.project \(layers: 1\.0\).*register_flop_formula"
    with pytest.warns(UserWarning, match=message):
        assert count_macs(module, torch.zeros(1, 3)) == 9


@pytest.mark.parametrize("layer", [Project, Hidden])
def test_modules_with_weights_that_count_nothing_are_refused(layer):
    with pytest.raises(ValueError, match=r"layers: 0.*count is 0"):
        count_macs(nn.Sequential(layer(3, 2)), torch.zeros(1, 3))


def test_a_formula_registered_with_torch_is_used(monkeypatch):
    def formula(x, weight, *, out_val):
        return 2 * len(x) * weight.numel()

    monkeypatch.setitem(flop_registry, torch.ops.sk_calex_tests.project, formula)
    assert count_macs(Project(3, 2), torch.zeros(4, 3)) == 4 * 6


def test_layers_that_multiply_by_no_matrix_count_nothing():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.place = nn.Parameter(torch.zeros(1, 5, 4))
            self.norm = nn.LayerNorm((5, 4))

        def forward(self, x):
            return self.norm(self.words(x) + self.place).cumsum(1)

    assert count_macs(Tokens(), torch.zeros(1, 5, dtype=torch.int64)) == 0
    batch = nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.PReLU(3))
    assert count_macs(batch, torch.zeros(1, 3, 4, 4)) == 0


def test_stages_without_a_formula_are_named_and_all_of_them_refused():
    part = {"tap": nn.Linear(3, 3), "last": Project(3, 2)}
    module = nn.Sequential(OrderedDict(part))
    with pytest.warns(UserWarning, match="layers: last"):
        stages = Stages.split(module, ["tap"], torch.rand(2, 3))
    assert list(stages.macs) == [9, 0]
    module = nn.Sequential(OrderedDict(part | {"tap": Project(3, 3)}))
    with pytest.raises(ValueError, match=r"layers: tap.*layers: last.*count is 0"):
        Stages.split(module, ["tap"], torch.rand(2, 3))


def test_packed_weights_without_a_formula_give_a_warning(monkeypatch):
    formulas = all_formulas()
    del formulas[torch.ops.quantized.linear_dynamic]
    monkeypatch.setattr(_flops, "all_formulas", lambda: formulas)
    module = nn.Sequential(nn.Linear(3, 4), quantized(nn.Linear(4, 2)))
    with pytest.warns(UserWarning, match=r"linear_dynamic \(layers: packed weights"):
        assert count_macs(module, torch.zeros(1, 3)) == 12
