"""Train the backbone that a cascade makes cheaper: a ResNet on small images.

The recipe behind the benchmarks' backbones, on the CPU or a GPU: SGD with Nesterov
momentum under a one-cycle schedule, random crops and flips. Validation rows, a tenth of
the training set, stratified, are left out, so that a cascade can be calibrated on
samples that the backbone never saw; of CIFAR-100 they are the rows that
`load_cifar100_coarse` calls `val`. Writes the weights as safetensors, and beside them
a JSON file with the settings, the accuracies and the validation rows.

    python examples/train_backbone.py --arch resnet18 --epochs 60 --out resnet18
    python examples/train_backbone.py --data digits --arch resnet10 --out tiny

CIFAR-100 with its 20 coarse classes is looked for as `load_cifar100_coarse` does. The
smaller ResNets are the honest rivals of a cascade: a network that is cheap for every
sample.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sk_calex.datasets import load_cifar100_coarse, load_digits_images

ARCHITECTURES = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet14": (BasicBlock, [1, 1, 2, 2]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
CHUNK = 1024


def small_image_resnet(arch: str, n_classes: int) -> ResNet:
    """A torchvision ResNet whose first convolution keeps the resolution."""
    block, layers = ARCHITECTURES[arch]
    # Blocks of three convolutions hardly learn at first, unless they begin as nothing.
    module = ResNet(
        block, layers, num_classes=n_classes, zero_init_residual=block is Bottleneck
    )
    module.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    return module


def load(data: str) -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray | None]:
    """Images (n, 3, H, W) as uint8 and labels, of the training and the test part.

    And the rows of the training part that the data set itself holds back, if any.
    """
    held = None
    if data == "digits":
        digits = load_digits_images()
        train, test = np.r_[digits.train, digits.val], digits.test
        parts = (digits.data[train], digits.target[train])
        rest = (digits.data[test], digits.target[test])
    else:
        first = load_cifar100_coarse(split="train")
        second = load_cifar100_coarse(split="test")
        held = first.val
        parts, rest = (first.data, first.target), (second.data, second.target)
    images, test_images = torch.from_numpy(parts[0]), torch.from_numpy(rest[0])
    labels, test_labels = (
        torch.from_numpy(y.astype(np.int64)) for _, y in (parts, rest)
    )
    return images, labels, test_images, test_labels, held


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random crops after padding, and flips, for a whole batch at once."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns).to(images.device)
    rows = rows.to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None]
    # Indexed axes first: (n, H, W, C), then back.
    return padded.permute(0, 2, 3, 1)[
        index, rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)


def accuracy(module: nn.Module, images: Tensor, labels: Tensor, scale: Scale) -> float:
    """Share of right answers."""
    module.eval()
    right = 0
    with torch.inference_mode():
        for i in range(0, len(images), CHUNK):
            logits = module(scale(images[i : i + CHUNK]))
            right += int((logits.argmax(1) == labels[i : i + CHUNK]).sum())
    return right / len(images)


class Scale:
    """uint8 images to floats of mean 0 and deviation 1 a channel."""

    def __init__(self, images: Tensor) -> None:
        sample = images[:5000].float() / 255
        self.mean = sample.mean((0, 2, 3)).view(3, 1, 1)
        self.std = sample.std((0, 2, 3)).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (value.to(images.device) for value in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def train(args: argparse.Namespace) -> None:
    """Train, report and save."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    images, labels, test_images, test_labels, held = load(args.data)
    every = np.arange(len(labels))
    if held is None:
        _, held = train_test_split(
            every, test_size=0.1, random_state=args.seed, stratify=labels
        )
    kept = np.setdiff1d(every, held)
    scale = Scale(images[kept])
    X, y = images[kept].to(device), labels[kept].to(device)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)  # torchvision initialises from the global state
        module = small_image_resnet(args.arch, len(torch.unique(labels)))
    module.to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        fused=True,
    )
    per_epoch = max(1, len(X) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.epochs * per_epoch, pct_start=0.25
    )
    mixed = args.bf16 or device.type == "cuda"
    start = time.perf_counter()
    for epoch in range(args.epochs):
        module.train()
        order = torch.randperm(len(X), generator=generator)
        total = torch.zeros((), device=device)
        for step in range(per_epoch):
            rows = order[step * args.batch_size : (step + 1) * args.batch_size]
            rows = rows.to(device)
            batch = scale(X[rows] if args.no_augment else augment(X[rows], generator))
            batch = batch.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, mixed):
                loss = F.cross_entropy(module(batch), y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        seconds = time.perf_counter() - start
        loss_of_epoch = float(total) / per_epoch
        print(
            f"epoch {epoch + 1}: loss {loss_of_epoch:.4f}, {seconds:.0f} s", flush=True
        )

    parts = {
        "train": (images[kept], labels[kept]),
        "validation": (images[held], labels[held]),
        "test": (test_images, test_labels),
    }
    found = {
        name: accuracy(module, part.to(device), truth.to(device), scale)
        for name, (part, truth) in parts.items()
    }
    out = Path(args.out)
    state = {
        name: value.contiguous().cpu() for name, value in module.state_dict().items()
    }
    save_file(state, out.with_suffix(".safetensors"))
    record = {
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "device": str(device),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - start,
        "accuracy": found,
        "mean": scale.mean.flatten().tolist(),
        "std": scale.std.flatten().tolist(),
        "validation_rows": sorted(int(i) for i in held),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, default="resnet18")
    parser.add_argument("--data", choices=("cifar100", "digits"), default="cifar100")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate")
    parser.add_argument("--no-augment", action="store_true")
    parser.add_argument(
        "--bf16", action="store_true", help="mixed precision on the CPU too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", required=True, help="path of the files, no ending")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
