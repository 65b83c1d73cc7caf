"""Which memory format runs each stage of a network fastest on a CPU, by batch size.

Five arms, each a copy of the same stage: the plain layers; batch normalisation folded
into the convolutions, on contiguous maps; folded, on channels-last maps; folded, with
weights packed once for oneDNN; and packed but where the library's rule for small maps
says otherwise. So packing and folding are measured apart. The arms are
run in turn, in one process, and compared round by round by processor time: other work
on the machine then slows all of them alike. Ratios are to the folded contiguous stage;
"plain" has none of it. The whole network takes the best arm of each stage.

    python examples/benchmarks/convolution_formats.py --threads 1
"""

from __future__ import annotations

import argparse
import copy
import os
import time

import numpy as np
import torch
import torchvision
from _common import environment, read_json, spread, write_json
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from sk_calex.utils._packed_conv import PackedConv2d, pack

BATCHES = (1, 8, 32, 256)
ARMS = ("plain", "contiguous", "channels last", "packed", "chosen")


def resnet18():
    """The one of the other benchmarks, for images of 32 x 32."""
    net = torchvision.models.resnet18(num_classes=20)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    stem = [net.conv1, net.bn1, net.relu, net.layer1]
    return 32, [stem, [net.layer2], [net.layer3], [net.layer4]]


def resnet50():
    """ImageNet's, on images of 64 x 64."""
    net = torchvision.models.resnet50()
    stem = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1]
    return 64, [stem, [net.layer2], [net.layer3], [net.layer4]]


def mobilenet_v3():
    """The large one, on images of 96 x 96: half of its convolutions are depthwise."""
    blocks = list(torchvision.models.mobilenet_v3_large().features)
    return 96, [blocks[:4], blocks[4:7], blocks[7:13], blocks[13:]]


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50, "mobilenet_v3": mobilenet_v3}


class AlwaysPacked(PackedConv2d):
    """Packed at any size of maps and batch: what the library's rule is judged by."""

    def _is_window_on_small_map(self, shape: torch.Size) -> bool:
        return False


def packed(module: nn.Module, always: bool) -> nn.Module:
    """The module with every convolution packed that can be."""
    for name, child in module.named_children():
        layer = pack(child)
        if layer is not child:
            setattr(module, name, AlwaysPacked(child) if always else layer)
        else:
            packed(child, always)
    return module


def arms_of(layers: list[nn.Module]) -> dict[str, nn.Module]:
    """The five copies of a stage."""
    plain = nn.Sequential(*layers).eval()
    folded = fuse(plain)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    arms = [plain, folded, last]
    arms += [packed(copy.deepcopy(folded), always) for always in (True, False)]
    return dict(zip(ARMS, arms, strict=True))


def seconds_of(arm: nn.Module, x: Tensor, calls: int) -> float:
    """Processor time of one call, of all threads together."""
    start = time.process_time()
    for _ in range(calls):
        arm(x)
    return (time.process_time() - start) / calls


def measure(stages: list[dict[str, nn.Module]], x: Tensor, rounds: int, least: float):
    """Seconds of each arm of each stage, (stages, arms, rounds); arms alternate."""
    inputs = []
    for arms in stages:
        inputs.append(x)
        x = arms["contiguous"](x)
    table = np.empty((len(stages), len(ARMS), rounds))
    for k, (arms, given) in enumerate(zip(stages, inputs, strict=True)):
        forms = {
            name: given.contiguous(
                memory_format=torch.channels_last
                if name in ("channels last", "packed", "chosen")
                else torch.contiguous_format
            )
            for name in ARMS
        }
        expected = arms["plain"](given)
        for name, arm in arms.items():  # also warms up
            assert torch.allclose(arm(forms[name]), expected, rtol=1e-3, atol=1e-3)
        once = seconds_of(arms["contiguous"], given, 1)
        calls = max(1, round(least / once))
        for i in range(rounds):
            order = np.random.default_rng(i).permutation(len(ARMS))
            for a in order:
                name = ARMS[a]
                table[k, a, i] = seconds_of(arms[name], forms[name], calls)
    return table


def summary(table: np.ndarray) -> dict[str, object]:
    """Ratios to the folded contiguous arm, per stage; what the best of each gives."""
    base = table[:, ARMS.index("contiguous")]
    stages = [
        {
            "contiguous_ms": 1e3 * float(np.median(base[k])),
            **{
                name: spread(table[k, a] / base[k])
                for a, name in enumerate(ARMS)
                if name != "contiguous"
            },
        }
        for k in range(len(table))
    ]
    medians = np.median(table, axis=2)
    whole = {n: float(medians[:, a].sum()) for a, n in enumerate(ARMS)}
    best = medians[:, 1:].argmin(axis=1) + 1
    two = medians[:, 1:3].min(axis=1).sum()  # what is left where packing is deleted
    return {
        "stages": stages,
        "best": [ARMS[a] for a in best],
        "whole_ms": {name: 1e3 * value for name, value in whole.items()},
        "best_over_plain": float(medians[:, 1:].min(axis=1).sum() / whole["plain"]),
        "best_over_best_without_packing": float(medians[:, 1:].min(axis=1).sum() / two),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--least", type=float, default=0.1, help="seconds of a turn")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    record = read_json("convolution_formats")
    record["what"] = __doc__.splitlines()[0]
    record["environment"] = environment()
    record["settings"] = {"seed": 0}
    for name in args.networks:
        size, layers = NETWORKS[name]()
        with torch.inference_mode():
            stages = [arms_of(part) for part in layers]
            for batch in args.batches:
                x = torch.randn(batch, 3, size, size)
                found = summary(measure(stages, x, args.rounds, args.least))
                found["load"] = os.getloadavg()[0]
                found |= {"rounds": args.rounds, "seconds_of_a_turn": args.least}
                key = f"{name}, batch {batch}, threads {args.threads}"
                record.setdefault("runs", {})[key] = found
                write_json("convolution_formats", record)
                print(key, f"load {found['load']:.1f}", found["best"])
                for stage in found["stages"]:
                    ratios = [
                        f"{n} {stage[n]['median']:.2f}" for n in stage if n in ARMS
                    ]
                    print(f"   {stage['contiguous_ms']:9.2f} ms", *ratios)
                print(
                    f"   best formats over plain {found['best_over_plain']:.2f}, over "
                    f"no packing {found['best_over_best_without_packing']:.2f}"
                )


if __name__ == "__main__":
    main()
