"""One exported cascade for many tests: writing graphs takes torch a second each."""

import json

import numpy as np
import pytest

from sk_calex import CascadeClassifier
from sk_calex.calibration import StageTable
from sk_calex.cascade._onnx._graphs import import_onnx_tools
from sk_calex.policies import Quota, first_exits
from sk_calex.utils._checked_folder import digest_of_json
from tests._cascade_models import images, small_branch, tiny_backbone

X, Y = images(90)
Z, _ = images(50, seed=1)
LABELS = np.array(["ant", "bee", "cat"])


def skip_without_exporter():
    """Skip where the extra is not installed, or torch is older than its exporter."""
    try:
        import_onnx_tools()
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


def fitted(**params):
    """A cascade on float images; a third of the samples exits at each depth."""
    params = {
        "branch": small_branch(),
        "calibrator": Quota(1.0),
        "alignment": "none",
        "random_state": 0,
    } | params
    backbone = params.pop("backbone", None) or tiny_backbone()
    return CascadeClassifier(backbone, **params).fit(X, LABELS[Y])


def answers_alike(served, cascade, given=Z, atol=1e-5):
    """Probabilities up to rounding; decisions as the same rule makes them on those.

    So no sample has to be far from a threshold for the comparison to be exact.
    """
    stages = served.stage_probabilities(given)
    np.testing.assert_allclose(
        stages, cascade.stage_probabilities(given), rtol=0, atol=atol
    )
    table = StageTable.from_probabilities(stages)
    depth = first_exits(cascade.calibrator_, table)
    labels, found = served.predict(given, return_depth=True)
    np.testing.assert_array_equal(found, depth)
    codes = table.predicted[depth, np.arange(len(depth))]
    np.testing.assert_array_equal(labels, cascade.classes_[codes])
    np.testing.assert_array_equal(served.classes_, cascade.classes_)
    np.testing.assert_array_equal(served.exit_depth(given), depth)
    np.testing.assert_array_equal(served.depth_costs_, cascade.depth_costs_)
    np.testing.assert_array_equal(served.cost(given), cascade.depth_costs_[depth])
    proba = served.predict_proba(given)
    np.testing.assert_allclose(
        proba, stages[depth, np.arange(len(depth))], rtol=0, atol=atol
    )
    return depth


def rewrite(folder, change):
    """Change the manifest as somebody would who knows the format."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("digest", None)
    manifest["digest"] = digest_of_json(manifest)
    path.write_text(json.dumps(manifest))
