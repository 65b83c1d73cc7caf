"""FLOPs of the operators that `torch.utils.flop_counter` has no formula for.

A formula takes the arguments of an operator as they are, and its result as ``out_val``;
it returns FLOPs, two for a multiply-accumulate, as torch's own formulas do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry

__all__ = ["Formula", "all_formulas"]

Formula = Callable[..., int]


def all_formulas() -> dict[Any, Formula]:
    """Return the formula of each operator: ours, and over them those torch has."""
    return _ours() | flop_registry


def _ours() -> dict[Any, Formula]:
    named: dict[str, dict[str, Formula]] = {
        "aten": {
            "mv": _matrix_vector,
            "addmv": _added_matrix_vector,
            "dot": _matrix_vector,
            "vdot": _matrix_vector,
            "addbmm": _added_batched_product,
            "_addmm_activation": _added_product,
            "_int_mm": _linear,
            "_weight_int8pack_mm": _linear,
            "_weight_int4pack_mm": _linear,
            "_weight_int4pack_mm_for_cpu": _linear,
            "linear": _linear,
            "mkldnn_linear": _linear,
            "_trilinear": _bilinear,
            "_scaled_dot_product_flash_attention_for_cpu": _attention,
            "_scaled_dot_product_fused_attention_overrideable": _attention,
            "_native_multi_head_attention": _multi_head_attention,
            "_transformer_encoder_layer_fwd": _encoder_layer,
            "mkldnn_convolution": _convolution,
            "slow_conv3d_forward": _convolution,
            "slow_conv_dilated2d": _convolution,
            "slow_conv_dilated3d": _convolution,
            "_conv_depthwise2d": _convolution,
            "conv_depthwise3d": _convolution,
            "mkldnn_rnn_layer": _one_recurrent_layer,
            "_cudnn_rnn": _recurrent_layers,
            "miopen_rnn": _recurrent_layers,
            "_lstm_mps": _mps_recurrent_layers,
            "quantized_lstm": _quantized_lstm,
            "quantized_gru": _quantized_gru,
        },
        "mkldnn": {
            "_linear_pointwise": _linear,
            "_convolution_pointwise": _convolution,
        },
        "onednn": {
            "qlinear_pointwise": _linear,
            "qconv2d_pointwise": _onednn_quantized_convolution,
        },
        "quantized": {
            **dict.fromkeys(
                (
                    "linear",
                    "linear_relu",
                    "linear_leaky_relu",
                    "linear_tanh",
                    "linear_dynamic",
                    "linear_relu_dynamic",
                    "linear_dynamic_fp16",
                    "linear_relu_dynamic_fp16",
                    "matmul",
                ),
                _linear,
            ),
            **{
                f"conv{n}d{suffix}": _quantized_convolution
                for n in (1, 2, 3)
                for suffix in ("", "_relu", "_dynamic")
            },
            **{
                f"conv_transpose{n}d{suffix}": _quantized_transposed_convolution
                for n in (1, 2, 3)
                for suffix in ("", "_dynamic")
            },
            "quantized_lstm_cell_dynamic": _quantized_lstm_cell,
            "quantized_gru_cell_dynamic": _quantized_gru_cell,
        },
    }
    return dict(_operators(named))


def _operators(
    named: dict[str, dict[str, Formula]],
) -> Iterator[tuple[Any, Formula]]:
    """Look the operators up: not every build of torch has them all."""
    for library, formulas in named.items():
        for name, formula in formulas.items():
            operator = getattr(getattr(torch.ops, library), name, None)
            if operator is not None:
                yield operator, formula


# -- products ----------------------------------------------------------------------


def _linear(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count ``x @ weight.T``, whatever the weight is packed into."""
    return 2 * out_val.numel() * x.shape[-1]


def _matrix_vector(a: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel()


def _added_matrix_vector(_: Tensor, a: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel()


def _added_product(_: Tensor, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


_added_batched_product = _added_product


def _bilinear(i1: Tensor, i2: Tensor, i3: Tensor, *expansions: Any, **_: Any) -> int:
    """Count `torch.nn.Bilinear`: its weight meets one input, then the other.

    Both at the cost of a product: ``x1 @ weight`` for each row, then ``. @ x2``.
    """
    rows = i1.shape[0]
    return 2 * rows * (i2.numel() + math.prod(i2.shape) // i2.shape[1])


# -- attention -------------------------------------------------------------------------


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Count scores and their product with the values; heads may share keys."""
    *batch, n_queries, width = q.shape
    return 2 * math.prod(batch) * n_queries * k.shape[-2] * (width + v.shape[-1])


def _multi_head_attention(
    query: Tensor,
    _key: Tensor,
    _value: Tensor,
    embed_dim: int,
    _num_head: int,
    qkv_weight: Tensor,
    _qkv_bias: Tensor,
    proj_weight: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    """Count self-attention: torch fuses no other."""
    return _self_attention(query, embed_dim, qkv_weight.numel() + proj_weight.numel())


def _encoder_layer(*arguments: Any, **_: Any) -> int:
    src, embed_dim, _, qkv_weight, _, proj_weight = arguments[:6]
    ffn_1, ffn_2 = arguments[14], arguments[16]
    weights = (qkv_weight, proj_weight, ffn_1, ffn_2)
    return _self_attention(src, embed_dim, sum(w.numel() for w in weights))


def _self_attention(src: Tensor, embed_dim: int, n_weights: int) -> int:
    """Count each token by each weight, and each token of its sequence twice."""
    if src.is_nested:  # padding is left out
        lengths = [len(sequence) for sequence in src.unbind()]
    else:
        lengths = [src.shape[1]] * src.shape[0]
    products = sum(2 * n * n * embed_dim for n in lengths)
    return 2 * (sum(lengths) * n_weights + products)


# -- convolutions ----------------------------------------------------------------------


def _convolution(x: Tensor, weight: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    out = out_val[0] if isinstance(out_val, Sequence) else out_val
    return conv_flop_count(list(x.shape), list(weight.shape), list(out.shape))


def _onednn_quantized_convolution(
    x: Tensor,
    _scale: Any,
    _zero: Any,
    weight: Tensor,
    *_: Any,
    out_val: Tensor,
    **__: Any,
) -> int:
    return _convolution(x, weight, out_val=out_val)


def _quantized_convolution(
    x: Tensor, packed: Any, *_: Any, out_val: Tensor, **__: Any
) -> int:
    n_outputs = out_val.numel() // out_val.shape[1]
    return 2 * n_outputs * int(packed.unpack()[0].numel())


def _quantized_transposed_convolution(
    x: Tensor, packed: Any, *_: Any, **__: Any
) -> int:
    n_inputs = x.numel() // x.shape[1]
    return 2 * n_inputs * int(packed.unpack()[0].numel())


# -- recurrent layers ------------------------------------------------------------------


def _one_recurrent_layer(
    x: Tensor, of_input: Tensor, of_state: Tensor, *_: Any, **__: Any
) -> int:
    return _steps(x) * 2 * (of_input.numel() + of_state.numel())


def _recurrent_layers(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """Count all layers and directions at once: each step meets each matrix."""
    return _steps(x) * 2 * sum(w.numel() for w in weights if w.ndim == 2)


def _mps_recurrent_layers(
    x: Tensor, _hx: Any, weights: Sequence[Tensor], *_: Any, **__: Any
) -> int:
    return _recurrent_layers(x, weights)


def _quantized_lstm(x: Tensor, hx: Sequence[Tensor], *arguments: Any, **_: Any) -> int:
    return _gated_layers(x, hx[0], 4, *arguments)


def _quantized_gru(x: Tensor, hx: Tensor, *arguments: Any, **_: Any) -> int:
    return _gated_layers(x, hx, 3, *arguments)


def _gated_layers(
    x: Tensor,
    state: Tensor,
    n_gates: int,
    _params: Any,
    _has_biases: bool,
    num_layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    *_: Any,
) -> int:
    """Count layers whose weights are packed by their sizes."""
    hidden, directions = state.shape[-1], 2 if bidirectional else 1
    weights, width = 0, x.shape[-1]
    for _layer in range(num_layers):
        weights += directions * n_gates * hidden * (width + hidden)
        width = directions * hidden
    return _steps(x) * 2 * weights


def _quantized_lstm_cell(x: Tensor, hx: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _cell(x, hx[0], 4)


def _quantized_gru_cell(x: Tensor, hx: Tensor, *_: Any, **__: Any) -> int:
    return _cell(x, hx, 3)


def _cell(x: Tensor, state: Tensor, n_gates: int) -> int:
    hidden = state.shape[-1]
    return 2 * x.shape[0] * n_gates * hidden * (x.shape[-1] + hidden)


def _steps(x: Tensor) -> int:
    """Time steps of all sequences, packed or padded."""
    return x.numel() // x.shape[-1]
