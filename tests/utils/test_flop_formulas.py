"""FLOPs of operators that torch has no formula for, against counts by hand."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sk_calex.utils import _flop_formulas
from sk_calex.utils._flop_formulas import all_formulas
from sk_calex.utils._flops import count_macs
from tests._models import quantized

STEPS, WIDTH, HIDDEN = 5, 8, 6


def sequence(width=WIDTH, n=1):
    return torch.randn(n, STEPS, width)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("kind", "n_gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_macs_of_recurrent_layers_equal_hand_counts(
    kind, n_gates, bidirectional, inference
):
    layer = kind(WIDTH, HIDDEN, 2, bidirectional=bidirectional, batch_first=True)
    directions = 2 if bidirectional else 1
    first = n_gates * HIDDEN * (WIDTH + HIDDEN)
    second = n_gates * HIDDEN * (directions * HIDDEN + HIDDEN)
    with torch.inference_mode(inference):
        got = count_macs(layer, sequence(n=3))
    assert got == 3 * STEPS * directions * (first + second)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # by torch
def test_macs_of_an_lstm_with_projection_equal_the_hand_count():
    layer = nn.LSTM(WIDTH, HIDDEN, proj_size=3, batch_first=True)
    gates = 4 * HIDDEN * (WIDTH + 3)
    assert count_macs(layer, sequence()) == STEPS * (gates + HIDDEN * 3)


def test_macs_of_packed_sequences_leave_the_padding_out():
    layer = nn.LSTM(WIDTH, HIDDEN, batch_first=True)

    def call(x):
        lengths = torch.tensor([5, 2])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return layer(packed)[0].data

    expected = 7 * 4 * HIDDEN * (WIDTH + HIDDEN)
    assert count_macs(call, sequence(n=2)) == expected


@pytest.mark.parametrize(("kind", "n_gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3)])
@pytest.mark.parametrize("packed", [True, False])
def test_macs_of_recurrent_cells_equal_hand_counts(kind, n_gates, packed):
    cell = kind(WIDTH, HIDDEN)
    cell = quantized(cell) if packed else cell
    expected = 3 * n_gates * HIDDEN * (WIDTH + HIDDEN)
    assert count_macs(cell, torch.randn(3, WIDTH)) == expected


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_quantised_recurrent_layers_cost_as_much_as_plain_ones(kind, bidirectional):
    plain = kind(WIDTH, HIDDEN, 2, bidirectional=bidirectional)
    assert count_macs(quantized(plain), sequence()) == count_macs(plain, sequence())


def test_quantised_linear_layers_cost_as_much_as_plain_ones():
    assert count_macs(quantized(nn.Linear(WIDTH, 3)), sequence(n=2)) == 2 * STEPS * 24


def test_statically_quantised_convolutions_equal_hand_counts():
    convolutions = [nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves these functions to a package
        ao = torch.ao.quantization
        module = nn.Sequential(
            ao.QuantStub(),
            *convolutions,
            nn.ConvTranspose2d(6, 2, 2),
            nn.Flatten(),
            nn.Linear(2 * 16, 3),
            ao.DeQuantStub(),
        ).eval()
        module.qconfig = ao.default_qconfig
        prepared = ao.prepare(module)
        prepared(torch.randn(2, 4, 8, 8))
        module = ao.convert(prepared)
    # Maps: 8x8, 3x3 after the convolution, 4x4 after the transposed one.
    expected = 9 * 6 * (4 // 2) * 9 + 9 * 6 * 2 * 4 + 32 * 3
    assert count_macs(module, torch.randn(1, 4, 8, 8)) == expected


def test_fused_attention_equals_the_hand_count():
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 7, 4), torch.randn(2, 6, 7, 4)
    expected = 2 * 6 * 5 * 7 * (4 + 4)
    assert count_macs(scaled_dot_product_attention, q, k, v) == expected


@pytest.mark.parametrize("fast", [True, False])
def test_attention_costs_the_same_in_torchs_fast_path(fast):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
        x = sequence(n=3)
        projections, products = 5 * 4 * 8 * 8, 2 * 5 * 5 * 8
        got = count_macs(attention, x, x, x)
        assert got == 3 * (projections + products)
        expected = 3 * (projections + products + 5 * 2 * 8 * 12)
        assert count_macs(layer, x) == expected
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_nested_sequences_of_attention_leave_the_padding_out():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1
    )
    padding = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])

    def call(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            return encoder.eval()(x, src_key_padding_mask=padding)

    weights = 4 * 8 * 8 + 2 * 8 * 12
    expected = sum(n * weights + 2 * n * n * 8 for n in (5, 2))
    assert count_macs(call, sequence(n=2)) == expected


def test_products_with_vectors_and_bilinear_layers_equal_hand_counts():
    matrix, vector = torch.randn(3, 4), torch.randn(4)
    assert count_macs(torch.mv, matrix, vector) == 12
    assert count_macs(torch.addmv, torch.zeros(3), matrix, vector) == 12
    assert count_macs(torch.dot, vector, vector) == 4
    batches = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert count_macs(torch.addbmm, torch.zeros(3, 5), *batches) == 2 * 3 * 4 * 5
    bilinear = nn.Bilinear(7, 5, 3)
    got = count_macs(bilinear, torch.randn(2, 7), torch.randn(2, 5))
    assert got == 2 * (3 * 7 * 5 + 3 * 5)


def test_kernels_of_other_devices_are_counted_from_their_arguments():
    """Formulas of kernels that this machine may not have, called directly."""
    x, out = torch.randn(1, 2, 6, 6), torch.empty(1, 4, 4, 4)
    weight = torch.randn(4, 2, 3, 3)
    expected = 2 * 16 * 4 * 2 * 9
    assert _flop_formulas._convolution(x, weight, out_val=out) == expected
    assert _flop_formulas._convolution(x, weight, out_val=(out, None)) == expected
    got = _flop_formulas._onednn_quantized_convolution(x, 1.0, 0, weight, out_val=out)
    assert got == expected
    lstm = nn.LSTM(WIDTH, HIDDEN, 2)
    weights = list(lstm.parameters())
    expected = 2 * STEPS * 4 * HIDDEN * (WIDTH + 3 * HIDDEN)
    assert _flop_formulas._recurrent_layers(sequence(), weights) == expected
    got = _flop_formulas._mps_recurrent_layers(sequence(), None, weights)
    assert got == expected


def test_formulas_of_torch_come_first_and_others_are_added():
    from torch.utils.flop_counter import flop_registry

    formulas = all_formulas()
    assert formulas.items() >= flop_registry.items()
    assert torch.ops.aten.mkldnn_rnn_layer in formulas
    assert not any(key is None for key in formulas)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_cost_the_same_on_a_gpu(kind):
    layer = kind(WIDTH, HIDDEN, 2, bidirectional=True)
    assert count_macs(layer.cuda(), sequence().cuda()) == count_macs(
        layer.cpu(), sequence()
    )
