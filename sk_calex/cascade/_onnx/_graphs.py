"""Write a torch module as an ONNX graph, and compare the two."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sk_calex.backbone._trace import TRACING

__all__ = ["check_graph", "import_onnx_tools", "write_graph"]

# Since then torch.export is what torch.onnx.export goes by.
_LEAST_TORCH = (2, 9)
# How the exporter names an operation that it does not know.
_OPERATION = re.compile(r"op='aten\.(\w+)'")


def import_onnx_tools() -> tuple[Any, Any]:
    """Import onnx and onnxruntime.

    Raises
    ------
    ImportError
        If they, or what torch's exporter needs, are not installed, or torch is older
        than its exporter.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter imports it
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {error.name}, which is not installed: "
            "pip install 'sk-calex[onnx]'."
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < _LEAST_TORCH:
        raise ImportError(
            f"export_onnx needs torch {'.'.join(map(str, _LEAST_TORCH))} or later; "
            f"this is {torch.__version__}. (OnnxCascade needs no torch at all.)"
        )
    return onnx, onnxruntime


def write_graph(
    module: nn.Module,
    tensors: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    where: str,
) -> bytes:
    """Write a module as a graph whose number of samples is open.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode.
    tensors : sequence of Tensor
        What it takes, for at least two samples.
    inputs, outputs : sequence of str
        Names of what it takes and gives.
    where : str
        What it is, for the message.

    Returns
    -------
    graph : bytes
        The graph, without paths and lines of the code that it was made of.

    Raises
    ------
    ValueError
        If torch cannot write it; the message names the module, where torch does.
    """
    size = torch.export.Dim("batch", min=1)
    program = None
    # Example tensors made in inference mode cannot be traced.
    with TRACING, _quiet(), torch.inference_mode(False), torch.no_grad():
        given = tuple(tensor.clone() for tensor in tensors)
        try:
            program = torch.export.export(
                module,
                given,
                dynamic_shapes=(tuple({0: size} for _ in given),),
                strict=False,
            )
            written = torch.onnx.export(
                program,
                given,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # whatever a module raises while it is traced
            raise ValueError(
                f"{where} cannot be exported: torch cannot write "
                f"{_culprit(program, error)} as ONNX ({_first_line(error)})."
            ) from error
    assert written is not None
    model = written.model_proto
    _drop_origins(model)
    try:
        graph: bytes = model.SerializeToString()
    except ValueError as error:  # of protocol buffers, at 2 GiB
        raise ValueError(
            f"{where} is too large for one graph, which holds less than 2 GiB: {error}"
        ) from error
    return graph


def check_graph(
    graph: bytes,
    module: nn.Module,
    tensors: Sequence[Tensor],
    inputs: Sequence[str],
    where: str,
) -> None:
    """Refuse a graph that does not give what the module gives, for 1 and more samples.

    Equal up to rounding: half the digits, on the scale of each output.
    """
    _, runtime = import_onnx_tools()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        found_for = {
            n: session.run(
                None,
                {
                    name: tensor[:n].numpy()
                    for name, tensor in zip(inputs, tensors, strict=True)
                },
            )
            for n in (1, len(tensors[0]))
        }
    except Exception as error:  # onnxruntime's own classes, one for each code
        raise ValueError(
            f"{where} was exported, but onnxruntime {runtime.__version__} does not run "
            f"the graph: {_first_line(error)}"
        ) from error
    for n, found in found_for.items():
        with torch.inference_mode():
            expected = module(*(tensor[:n].clone() for tensor in tensors))
        for ours, theirs in zip(expected, found, strict=True):
            values = ours.numpy()
            # What is computed from float32 is no more exact where it is float64.
            eps = max(
                torch.finfo(kind).eps
                for kind in (torch.float32, ours.dtype)
                if kind.is_floating_point
            )
            tolerance = eps**0.5 * float(np.abs(values).max(initial=0.0))
            if not np.allclose(theirs, values, rtol=0, atol=tolerance):
                raise ValueError(
                    f"{where} gives other values as a graph than in torch, by up to "
                    f"{np.abs(theirs - values).max():.3g}. Its forward does something "
                    "that tracing does not see, or an operation has another meaning "
                    "in ONNX, such as a resize with antialiasing."
                )


def _culprit(program: Any, error: BaseException) -> str:
    """Name the module whose operation an error is about."""
    texts, cause = [], error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__  # type: ignore[assignment]
    unknown = {name for text in texts for name in _OPERATION.findall(text)}
    # What it names may be a part of what the module calls: linalg_svd of svdvals.
    parts = [name.strip("_") for name in unknown]
    for node in [] if program is None else program.graph.nodes:
        if any(part in str(node.target) for part in parts):
            calls = list(node.meta.get("nn_module_stack", {}).values())
            named = [(path, kind) for path, kind in calls if path]
            if named:
                path, kind = named[-1]
                path = str(path).removeprefix("module.")
                kind = kind if isinstance(kind, str) else kind.__name__
                return f"{node.target} in {path!r}, a {kind.rpartition('.')[2]},"
            return f"{node.target}"
    return "it"


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line:.300}"


def _drop_origins(model: Any) -> None:
    """Drop what tells of the machine that wrote a graph: files, lines and the like."""
    del model.metadata_props[:]
    for function in model.functions:
        _drop_from(function, function.node)
    _drop_from(model.graph, model.graph.node)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")


def _drop_from(owner: Any, nodes: Any) -> None:
    for part in (owner, *nodes):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell developers from users, who did not call them."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
