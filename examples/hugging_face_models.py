"""Models of Hugging Face as backbones: a BERT on tokens with a mask, a ViT on images.

    pip install transformers
    python examples/hugging_face_models.py

Nothing is downloaded: both are built from small configurations and trained here for
some seconds, on made-up sentences and on scikit-learn's digits. For a pretrained one,
`AutoModelForSequenceClassification.from_pretrained(name)`, and the output of its
tokenizer as X.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    CascadeDisplay,
    FrozenBackbone,
    margin_curve,
)

try:
    import transformers
except ImportError:
    sys.exit(
        "This example needs transformers, which sk_calex itself does not: "
        "pip install transformers"
    )

MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)
SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--only", choices=("BERT", "ViT"), help="one of the two models")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    curves = {}
    if args.only != "ViT":
        bert = transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=100, intermediate_size=64, num_labels=3, **SIZE
            )
        )
        taps = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
        curves["BERT"] = report("BERT", bert, taps, *sentences(args), args)
    if args.only != "BERT":
        sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1}
        vit = transformers.ViTForImageClassification(
            transformers.ViTConfig(intermediate_size=64, num_labels=10, **sizes, **SIZE)
        )
        # Where its layers are has moved from one version to the next.
        parts = vit.named_modules()
        layers = next(name for name, part in parts if isinstance(part, nn.ModuleList))
        taps = [f"{layers}.0", f"{layers}.1"]
        curves["ViT"] = report("ViT", vit, taps, *digits(args), args)
    draw(curves, args)


def report(name, model, taps, X, y, args):
    """Train a model, put branches on it, print what they save, return the curve."""
    train = np.arange(len(y)) % 4 > 0
    fit_model(model, rows(X, train), y[train], args)
    backbone = FrozenBackbone(model, taps, output="logits")
    branch = BranchClassifier("gap", max_iter=2 if args.quick else 30)
    cascade = CascadeClassifier(backbone, branch=branch, random_state=args.seed)
    cascade.fit(rows(X, train), y[train])
    test = rows(X, ~train)
    print(f"{name}: tapped {taps}, shapes {cascade.layout_.shapes}")
    plain = cascade.backbone_.predict(test)
    print(f"  plain model: {np.mean(plain == y[~train]):.1%} right")
    right, saved = cascade.score(test, y[~train]), cascade.flops_reduction(test)
    print(f"  cascade:     {right:.1%} right, {saved:.1%} of the FLOPs saved")
    return margin_curve(cascade, test, y[~train], margins=MARGINS)


def draw(curves, args):
    """Draw accuracy against FLOPs saved for each model, a point for each margin."""
    figure = Figure(figsize=(4.4 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (name, curve) in zip(panels, curves.items(), strict=True):
        CascadeDisplay.from_curve(curve, name="cascade", ax=ax)
        ax.set_title(name)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "hugging_face_models.png"
    figure.savefig(path, dpi=100)
    print(f"Picture: {path.name}")


def rows(X, which):
    """Select rows of every input of the model."""
    return {name: values[which] for name, values in X.items()}


def sentences(args):
    """Make up sentences of several lengths: three words tell the class, if present."""
    rng = np.random.default_rng(args.seed)
    n = 200 if args.quick else 1500
    y = rng.integers(0, 3, n)
    ids = rng.integers(10, 100, (n, 16))
    lengths = rng.integers(6, 17, n)
    ids[np.arange(n), rng.integers(0, 6, n)] = 1 + y
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}, y


def digits(args):
    """Load scikit-learn's digits as images with one channel."""
    data = load_digits()
    n = 200 if args.quick else len(data.target)
    images = data.images[:n, None].astype(np.float32) / 16
    return {"pixel_values": images}, data.target[:n]


def fit_model(model, X, y, args):
    """Train for a few epochs of AdamW."""
    tensors = {name: torch.from_numpy(values) for name, values in X.items()}
    labels = torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(1 if args.quick else 8):
        for some in torch.randperm(len(y)).split(64):
            batch = {name: values[some] for name, values in tensors.items()}
            loss = nn.functional.cross_entropy(model(**batch).logits, labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


if __name__ == "__main__":
    main()
