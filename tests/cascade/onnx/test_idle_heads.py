"""Heads that rest stay in their graphs, and serving computes no part of them."""

import numpy as np
import pytest

from sk_calex import OnnxCascade, export_onnx
from sk_calex.baselines import BoostNetClassifier
from sk_calex.cascade._onnx import _parts
from sk_calex.cascade._onnx._engine import OnnxEngine, _Graph
from sk_calex.cascade._onnx._graphs import write_graph
from sk_calex.policies import Quota, SharedThreshold
from tests._cascade_models import STAGE_MACS, images, tiny_backbone
from tests.cascade.onnx._exported import (
    LABELS,
    X,
    Y,
    Z,
    answers_alike,
    rewrite,
    skip_without_exporter,
)

skip_without_exporter()

PLAIN = sum(STAGE_MACS)


@pytest.fixture(scope="module", autouse=True)
def graphs_written_once():
    """Which heads rest is told by the manifest: the graphs stay the same."""
    written = {}

    def write(module, tensors, inputs, outputs, where):
        weights = [tensor.numpy().tobytes() for tensor in module.state_dict().values()]
        key = where, *inputs, *outputs, *weights
        if key not in written:
            written[key] = write_graph(module, tensors, inputs, outputs, where)
        return written[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parts, "write_graph", write)
        yield


@pytest.fixture(scope="module")
def boosted():
    return BoostNetClassifier(
        tiny_backbone(), head="gap", max_iter=2, random_state=0, device="cpu"
    ).fit(X, LABELS[Y])


def closed_but_for(cascade, *branches):
    cascade.set_calibrator(SharedThreshold(0.5))
    rest = np.setdiff1d([0, 1], branches)
    cascade.calibrator_.thresholds_[rest] = np.inf
    return cascade


def ran(served, monkeypatch):
    """Stages of which the head and of which only the layers run for some images."""
    heads, layers = [], []
    for graph in served._engine._stages:
        for name, found in (("run", heads), ("run_without_head", layers)):
            run = getattr(graph, name)
            monkeypatch.setattr(
                graph,
                name,
                lambda values, run=run, graph=graph, found=found: (
                    found.append(served._engine._stages.index(graph)) or run(values)
                ),
            )
    said = served.predict_details(Z)
    return heads, layers, said


@pytest.mark.parametrize("live", [(), (0,), (1,)], ids=str)
def test_heads_rest_as_in_the_cascade(exported, live, tmp_path, monkeypatch):
    cascade = closed_but_for(exported[0], *live)
    export_onnx(cascade, tmp_path / "out")
    served = OnnxCascade(tmp_path / "out")
    answers_alike(served, cascade)
    heads, layers, said = ran(served, monkeypatch)
    assert heads == [*live, 2]
    assert layers == [k for k in (0, 1) if k not in live]
    assert said.first_stage == cascade.predict_details(Z).first_stage == heads[0]
    if not live:
        np.testing.assert_array_equal(said.cost, PLAIN)
        np.testing.assert_array_equal(said.labels, LABELS[cascade.backbone_.predict(Z)])
    cascade.set_calibrator(Quota(1.0))


@pytest.mark.parametrize(("live", "asked"), [((), []), ((0,), [0]), ((1,), [0, 1])])
def test_memory_reaches_the_heads_that_need_it(
    boosted, live, asked, tmp_path, monkeypatch
):
    cascade = closed_but_for(boosted, *live)
    export_onnx(cascade, tmp_path / "out")
    served = OnnxCascade(tmp_path / "out")
    answers_alike(served, cascade)
    heads, _, _ = ran(served, monkeypatch)
    assert heads == [*asked, 2]


def test_graphs_compute_no_more_than_later_stages_need(exported):
    served = OnnxCascade(exported[1])
    graph: _Graph = served._engine._stages[0]
    assert set(graph.run_without_head({"X": Z})) == set(graph.spec.without_head)
    engine: OnnxEngine = served._engine
    values = {"X": Z}
    engine.skip(0, values)
    whole = {"X": Z}
    engine.answer(0, whole, None)
    assert set(values) == set(whole)
    for name, value in values.items():
        np.testing.assert_array_equal(value, whole[name])


def test_integers_choose_which_heads_rest(exported, tmp_path):
    cascade = closed_but_for(exported[0], 1)
    new, y = images(60, seed=5)
    export_onnx(
        cascade,
        tmp_path / "out",
        quantize="int8",
        calibration_data=(new, LABELS[y]),
    )
    served = OnnxCascade(tmp_path / "out")
    # Fitted anew, the rule opens both branches again.
    assert served._running_heads.all()
    heads = cascade._branch_macs()
    assert served.depth_costs_[-1] == PLAIN + sum(heads)
    cascade.set_calibrator(Quota(1.0))


def test_folders_from_before_run_all_heads(exported, copied):
    rewrite(copied, lambda manifest: manifest["content"].pop("running_heads"))
    served = OnnxCascade(copied)
    assert served._running_heads.all()
    np.testing.assert_array_equal(
        served.predict(Z), OnnxCascade(exported[1]).predict(Z)
    )


@pytest.mark.parametrize("heads", [[True], [True, 1], "yes", None, {}])
def test_other_heads_are_refused(copied, heads):
    rewrite(copied, lambda m: m["content"].update(running_heads=heads))
    with pytest.raises(ValueError, match="running_heads: the manifest needs 2"):
        OnnxCascade(copied)
