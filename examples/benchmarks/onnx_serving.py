"""A cascade exported to ONNX against torch: equal answers, and processor time.

Four arms answer the same CIFAR-100 test images in turn: the plain module in torch, the
cascade in torch, the exported cascade, and the exported cascade in 8-bit integers with
thresholds of its own. One image at a time, and 32. The branches are trained on a part
of the training rows; all thresholds are chosen on the validation rows.

    python examples/benchmarks/onnx_serving.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from _common import cifar_backbone, cifar_splits, environment, spread, write_json
from _measure import in_turns, ratio
from sklearn.model_selection import PredefinedSplit

from sk_calex import (
    CascadeClassifier,
    OnnxCascade,
    PrototypePoolingClassifier,
    export_onnx,
)

PLAIN, TORCH, ONNX, INT8 = "plain module", "cascade", "OnnxCascade", "OnnxCascade int8"


def plain_predict(backbone, images, size):
    out = []
    with torch.inference_mode():
        for i in range(0, len(images), size):
            x = backbone.preprocess(torch.from_numpy(images[i : i + size]))
            out.append(backbone.module(x).argmax(1).numpy())
    return np.concatenate(out)


def in_batches(model, images, size):
    """Requests of `size` images each, as a service gets them."""
    return [model.predict(images[i : i + size]) for i in range(0, len(images), size)]


def fit_cascade(args, train, split):
    rows = np.flatnonzero(split.test_fold < 0)[: args.rows]
    rows = np.concatenate([rows, train.val])
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    cascade = CascadeClassifier(
        backbone.fit(train.data),
        branch=PrototypePoolingClassifier(max_iter=args.epochs),
        cv=PredefinedSplit(split.test_fold[rows]),
        margin=args.margin,
        random_state=args.seed,
    )
    return cascade.fit(train.data[rows], train.target[rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--rows", type=int, default=15_000, help="rows to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--margin", type=float, default=0.03)
    parser.add_argument("--calibration-rows", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    train, test, split = cifar_splits()
    cascade = fit_cascade(args, train, split)
    backbone = cascade.backbone_.set_params(cache=None)
    images, labels = test.data[: args.images], test.target[: args.images]
    held = train.val[: args.calibration_rows]
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(cascade, f"{folder}/float")
        data = train.data[held], train.target[held]
        export_onnx(cascade, f"{folder}/int8", quantize="int8", calibration_data=data)
        sizes = {
            name: sum(f.stat().st_size for f in Path(folder, name).glob("*.onnx"))
            for name in ("float", "int8")
        }
        served = OnnxCascade(f"{folder}/float", n_threads=args.threads)
        small = OnnxCascade(f"{folder}/int8", n_threads=args.threads)

    models = {TORCH: cascade, ONNX: served, INT8: small}
    answers = {
        name: model.predict(images, return_depth=True) for name, model in models.items()
    }
    answers[PLAIN] = plain_predict(backbone, images, 32), np.full(len(images), 3)
    plain_cost = sum(cascade.layout_.stage_macs)
    quality = {
        name: {
            "accuracy": float(np.mean(found == labels)),
            # The plain module has no heads.
            "saved": 0.0
            if name == PLAIN
            else float(1 - models[name].depth_costs_[depth].mean() / plain_cost),
            "labels_equal_to_cascade": float(np.mean(found == answers[TORCH][0])),
            "depths_equal_to_cascade": float(np.mean(depth == answers[TORCH][1])),
        }
        for name, (found, depth) in answers.items()
    }
    print(quality, flush=True)
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment() | {"onnxruntime": onnxruntime.__version__},
        "settings": vars(args) | {"cache": None},
        "graph_bytes": sizes,
        "quality": quality,
    }
    for size, n in ((1, min(200, args.images)), (32, args.images)):
        given = images[:n]
        seconds = in_turns(
            {
                PLAIN: lambda given=given, size=size: plain_predict(
                    backbone, given, size
                ),
                TORCH: lambda given=given, size=size: in_batches(cascade, given, size),
                ONNX: lambda given=given, size=size: in_batches(served, given, size),
                INT8: lambda given=given, size=size: in_batches(small, given, size),
            },
            args.repeats,
        )
        record[f"batch_{size}"] = {
            name: {
                "cpu_ms_an_image": spread(cpu * 1000 / n),
                "wall_ms_an_image": spread(seconds.wall[name] * 1000 / n),
                "cpu_speed_up_over_plain": ratio(seconds.cpu[PLAIN], cpu),
                "cpu_speed_up_over_cascade": ratio(seconds.cpu[TORCH], cpu),
            }
            for name, cpu in seconds.cpu.items()
        }
        for name, found in record[f"batch_{size}"].items():
            print(size, name, found["cpu_ms_an_image"], flush=True)
        write_json("onnx_serving", record)


if __name__ == "__main__":
    main()
