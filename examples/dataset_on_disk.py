"""Images that stay on disk: a torch Dataset or a list of paths, and a feature store.

    python examples/dataset_on_disk.py

writes scikit-learn's digits as PNG files, a folder for each class, and fits a cascade
on them without ever holding all images. The features of an image are computed once and
kept in a store: a second fit, another margin or a grid search reads them from there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from _digits import TAPS, load, parser, small_branch, trained_network
from PIL import Image
from sklearn.model_selection import PredefinedSplit
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import PILToTensor

from sk_calex import CascadeClassifier, FeatureStore, FrozenBackbone


def write(images, labels, folder, names):
    """PNG files in a folder for each class, as ImageFolder wants them."""
    for image, label, name in zip(images, labels, names, strict=True):
        path = folder / str(label) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    data = load(args)
    module = trained_network(data, args)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), module, data, args)


def run(folder, module, data, args):
    # The name of a file says whether its image calibrates.
    held = data.held_out.test_fold == 0
    names = [f"{'val' if h else 'train'}{i}" for i, h in enumerate(held)]
    write(data.X, data.y, folder / "known", names)
    write(data.X_test, data.y_test, folder / "test", range(len(data.y_test)))

    # A map-style Dataset: its items are (image, label), of which the image is taken.
    known = ImageFolder(folder / "known", transform=PILToTensor())
    test = ImageFolder(folder / "test", transform=PILToTensor())
    calibrate = [Path(path).name.startswith("val") for path, _ in known.samples]
    print(f"{len(known)} files to learn from, {len(test)} to test")

    store = FeatureStore(folder / "store")
    cascade = CascadeClassifier(
        FrozenBackbone(module, TAPS, dtype="float16", cache=store),
        branch=small_branch(args),
        cv=PredefinedSplit(np.where(calibrate, 0, -1)),
        random_state=args.seed,
    )
    print("                                rows computed  rows read")
    cascade.fit(known, known.targets)
    seen = report("fit on the Dataset", store, {"hits": 0, "misses": 0})
    cascade.fit(known, known.targets)
    seen = report("the same again", store, seen)

    # Paths do without a Dataset. Their rows are found by the bytes of the files, so
    # they are computed anew once, and nothing is decoded to look them up.
    paths = [Path(path) for path, _ in known.samples]
    cascade.fit(paths, known.targets)
    seen = report("fit on paths", store, seen)
    cascade.fit(paths[::-1], known.targets[::-1])
    report("the same, in another order", store, seen)

    answers, depth = cascade.predict([path for path, _ in test.samples], True)
    print(f"accuracy {np.mean(answers == test.targets):.1%}, ", end="")
    print(f"FLOPs saved {cascade.flops_reduction(test):.1%}, ", end="")
    shares = np.bincount(depth, minlength=4) / len(depth)
    print("answered at", ", ".join(f"{share:.0%}" for share in shares))


def report(what, store, before):
    """Print what the store did since `before`."""
    now = store.info()
    computed, read = (now[key] - before[key] for key in ("misses", "hits"))
    print(f"{what:30}  {computed:13}  {read:9}")
    return now


if __name__ == "__main__":
    main()
