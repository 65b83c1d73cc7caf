"""A folder that was damaged or crafted is refused, and reads nothing outside of it."""

import copy
import json
import math
import random

import numpy as np
import pytest

from sk_calex import OnnxCascade
from sk_calex.cascade._onnx._manifest import Manifest
from sk_calex.utils._checked_folder import digest_of_json
from tests.cascade.onnx._exported import Z, rewrite

REFUSED = (ValueError, FileNotFoundError)


def test_flipped_bytes_are_refused(copied):
    rng = random.Random(0)
    files = [p for p in sorted(copied.iterdir()) if p.name != "README.md"]
    for i in range(200):
        path = files[i % len(files)]
        sound = path.read_bytes()
        broken = bytearray(sound)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        if path.suffix == ".json" and says_the_same(broken, sound):
            continue  # white space, or a digit too many for a float
        with pytest.raises(REFUSED, match=path.name.replace(".", r"\.")):
            OnnxCascade(copied)
        path.write_bytes(sound)
    assert len(OnnxCascade(copied).predict(Z)) == len(Z)


def says_the_same(broken, sound):
    try:
        return json.loads(bytes(broken)) == json.loads(sound)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["stage_1.onnx", "manifest.json"])
def test_missing_and_shortened_files_are_refused(copied, name):
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(REFUSED, match=name):
        OnnxCascade(copied)
    path.unlink()
    with pytest.raises(REFUSED, match=name):
        OnnxCascade(copied)


def test_graphs_in_another_order_are_refused(copied):
    first, second = copied / "stage_0.onnx", copied / "stage_1.onnx"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)

    def swap(manifest):
        files = manifest["files"]
        files[first.name], files[second.name] = files[second.name], files[first.name]

    rewrite(copied, swap)
    with pytest.raises(ValueError, match="not what the manifest says"):
        OnnxCascade(copied)


def test_file_that_is_no_graph_is_refused(copied):
    import hashlib

    data = b"no graph"
    (copied / "stage_0.onnx").write_bytes(data)
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(copied, lambda m: m["files"].update({"stage_0.onnx": told}))
    with pytest.raises(ValueError, match=r"stage_0\.onnx is no graph"):
        OnnxCascade(copied)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_paths_cannot_leave_the_folder(copied, name):
    def add(manifest):
        manifest["files"][name] = dict(manifest["files"]["stage_0.onnx"])

    rewrite(copied, add)
    with pytest.raises(ValueError, match="not the name of a file in its folder"):
        OnnxCascade(copied)


def test_links_are_not_followed(copied, tmp_path):
    (copied / "stage_0.onnx").rename(tmp_path / "elsewhere")
    (copied / "stage_0.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="not a plain file"):
        OnnxCascade(copied)


@pytest.mark.parametrize("location", ["../secret.bin", "{absolute}"])
def test_weights_outside_of_the_folder_are_not_read(copied, tmp_path, location):
    import hashlib

    onnx = pytest.importorskip("onnx", reason="not installed: see the extra 'onnx'")
    model = onnx.load(copied / "stage_0.onnx")
    weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
    secret = tmp_path / "secret.bin"
    secret.write_bytes(weight.raw_data)
    size = str(len(weight.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    path = location.format(absolute=secret)
    for key, value in {"location": path, "offset": "0", "length": size}.items():
        weight.external_data.add(key=key, value=value)
    data = model.SerializeToString()
    (copied / "stage_0.onnx").write_bytes(data)
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(copied, lambda m: m["files"].update({"stage_0.onnx": told}))
    with pytest.raises(ValueError, match=r"stage_0\.onnx is no graph"):
        OnnxCascade(copied)


def test_later_schema_and_other_formats_are_refused(copied):
    rewrite(copied, lambda manifest: manifest.update(schema=99))
    with pytest.raises(ValueError, match=r"schema 99 by sk_calex .*Update sk_calex"):
        OnnxCascade(copied)
    rewrite(copied, lambda manifest: manifest.update(format="sk_calex", schema=1))
    with pytest.raises(ValueError, match=r"its format is not 'sk_calex\.onnx'"):
        OnnxCascade(copied)


JUNK = [
    *(None, True, -1, 0, 10**400, 2**63, 0.5, math.inf, "", "inf", "x", "NaN"),
    *([], {}, [[]], [None], ["X"], [1, 1], {"score": "gate"}, [{}], 10**9, "nan"),
]


def places(value, path=()):
    """Give the paths to all entries of JSON data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
        if isinstance(inside, dict | list):
            yield from places(inside, (*path, key))
        else:
            yield (*path, key)


def test_no_content_of_a_manifest_raises_another_error(exported):
    """Every entry becomes something else, is left out, or is there twice."""
    sound = json.loads((exported[1] / "manifest.json").read_text())["content"]
    refused = accepted = 0
    for path in places(sound):
        for junk in [*JUNK, "delete", "twice"]:
            content = {"": copy.deepcopy(sound)}
            *way, last = ("", *path)
            owner = content
            for key in way:
                owner = owner[key]
            if junk == "delete" and path:
                del owner[last]
            elif junk == "twice" and isinstance(owner, list):
                owner.append(copy.deepcopy(owner[last]))
            else:
                owner[last] = junk
            try:
                Manifest.from_json(content[""])
                accepted += 1
            except ValueError:
                refused += 1
    assert refused > 1000
    assert accepted > 10  # another threshold is no error


@pytest.mark.parametrize("classes", [["ant", "bee"], ["ant", "bee", "cat", "dog"]])
def test_logits_of_other_classes_are_refused(copied, classes):
    def change(manifest):
        content = manifest["content"]
        content["classes"]["values"] = classes
        for row in content["rule"]["thresholds"]:
            row[:] = ["inf"] * len(classes)
        for stage in content["stages"]:
            stage["classes"] = stage["columns"] = None

    rewrite(copied, change)
    with pytest.raises(ValueError, match=r"stage_0\.onnx gives logits of shape"):
        OnnxCascade(copied).predict(Z)


def test_graph_that_mixes_or_drops_samples_is_refused(copied):
    import hashlib

    onnx = pytest.importorskip("onnx", reason="not installed: see the extra 'onnx'")
    model = onnx.load(copied / "stage_0.onnx")
    for node in model.graph.node:
        node.output[:] = ["all" if name == "logits" else name for name in node.output]
    one = onnx.numpy_helper.from_array(np.zeros((1, 3), np.float32), "logits")
    model.graph.node.append(onnx.helper.make_node("Identity", ["one"], ["logits"]))
    one.name = "one"
    model.graph.initializer.append(one)
    data = model.SerializeToString()
    (copied / "stage_0.onnx").write_bytes(data)
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(copied, lambda m: m["files"].update({"stage_0.onnx": told}))
    with pytest.raises(ValueError, match="does not give one row for each sample"):
        OnnxCascade(copied).predict(Z)


def test_crafted_manifest_with_a_right_digest_is_refused(copied):
    rewrite(copied, lambda manifest: manifest["content"].update(stages=[]))
    with pytest.raises(ValueError, match=r"fewer than two stages.*written by sk_calex"):
        OnnxCascade(copied)
    rewrite(copied, lambda manifest: manifest["files"].pop("stage_2.onnx"))
    with pytest.raises(ValueError, match="fewer than two stages"):
        OnnxCascade(copied)


def test_listed_graphs_are_complete(copied):
    rewrite(copied, lambda manifest: manifest["files"].pop("stage_2.onnx"))
    with pytest.raises(ValueError, match=r"does not list \['stage_2\.onnx'\]"):
        OnnxCascade(copied)


def test_digest_of_the_manifest_covers_thresholds(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["content"]["rule"]["thresholds"][0][0] = 0.0
    assert manifest["digest"] != digest_of_json(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="digest does not fit"):
        OnnxCascade(copied)
    assert np.isfinite(manifest["content"]["depth_costs"]).all()
