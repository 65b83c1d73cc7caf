"""A model of timm as the backbone: which names to tap, which preprocessing to give.

    pip install timm
    python examples/timm_model.py

Any architecture of timm that `torch.fx` can trace will do. Its weights are not
downloaded here: a small ResNet is trained on scikit-learn's digits for some seconds.
For a pretrained one, `timm.create_model(name, pretrained=True)`.
"""

from __future__ import annotations

import sys

import torch
from _digits import load, parser, small_branch, trained
from torchvision.transforms import v2

from sk_calex import CascadeClassifier, FrozenBackbone, margin_curve

try:
    import timm
except ImportError:
    sys.exit(
        "This example needs timm, which sk_calex itself does not: pip install timm"
    )

MARGINS = (0.0, 0.05, 0.1, 0.2)


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--model", default="resnet10t", help="of timm.list_models()")
    args = options.parse_args(argv)
    data = load(args)

    def make():
        return timm.create_model(args.model, num_classes=10)

    module = trained(make, data, args)

    # feature_info names the modules at which the resolution changes: good places.
    names = [place["module"] for place in module.feature_info]
    taps = names[1:-1]
    print(f"{args.model} offers {names}; tapped: {taps}")

    # How the weights want their images. Trained here, these want them as they are.
    wanted = timm.data.resolve_model_data_config(module)
    print(f"A pretrained one wants mean={wanted['mean']}, std={wanted['std']}")
    preprocess = v2.ToDtype(torch.float32, scale=True)

    cascade = CascadeClassifier(
        FrozenBackbone(module, taps, preprocess=preprocess),
        branch=small_branch(args),
        cv=data.held_out,
        random_state=args.seed,
    )
    cascade.fit(data.X, data.y)
    curve = margin_curve(cascade, data.X_test, data.y_test, margins=MARGINS)
    print(f"Plain model: {curve.backbone_accuracy:.1%} right")
    print("margin  accuracy  FLOPs saved")
    for margin, accuracy, saved in zip(
        curve.margins, curve.accuracy, curve.flops_reduction, strict=True
    ):
        print(f"{margin:+6.2f}  {accuracy:8.1%}  {saved:11.1%}")


if __name__ == "__main__":
    main()
