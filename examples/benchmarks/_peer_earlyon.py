"""earlyon on cached features, calibrated by itself, counted by it and by us.

Its trainer runs the backbone in every epoch. The backbone is frozen and its heads begin
with a global average, so a stand-in that hands out the pooled features of the cache
trains the very same heads; that is checked on images, through a wrapper around the real
backbone, which also gives its own estimate of FLOPs. Its estimator gives up on networks
that call one ReLU twice, as torchvision's ResNets do, and spaces the exits evenly; it
says so by `reliable`, which is kept in the record.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _common import TAPS, Normalize, cifar_resnet18
from _peers import Clock, Data, Part, costs_of
from torch import Tensor, nn

from sk_calex.utils._flops import count_macs

DROPS = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12)
BUDGETS = tuple(np.round(np.arange(0.3, 1.0, 0.05), 2).tolist())
# Confidence, from strict to lax; entropies are shares of its largest value.
FINE = {
    "confidence": tuple(
        np.r_[1 - np.geomspace(0.002, 0.1, 15), np.arange(88, 30, -2) / 100]
    ),
    "entropy": tuple(np.geomspace(0.005, 0.9, 44) * np.log(20)),
}
BATCHES = (1, 4, 16, 64)
BATCH_ROWS = 1024

# The first is what it does unasked. The others compete: each routing policy over a fine
# grid, with and without temperatures.
DEFAULT = {"epochs": 20, "hidden_dim": 128}
CANDIDATES = (
    {"epochs": 20, "hidden_dim": 128, "fine": True},
    {"epochs": 20, "hidden_dim": 512, "fine": True},
    {"epochs": 60, "hidden_dim": 512, "fine": True},
)


class Batches:
    """Pairs of rows and labels, in another order each time if told to."""

    def __init__(self, part: Part, rows: Any = slice(None), generator: Any = None):
        self.X = torch.from_numpy(part.pooled[rows])
        self.y = torch.from_numpy(part.target[rows].astype(np.int64))
        self.generator = generator

    def __iter__(self) -> Any:
        n = len(self.y)
        order = torch.arange(n)
        if self.generator is not None:
            order = torch.randperm(n, generator=self.generator)
        for start in range(0, n, 128):
            rows = order[start : start + 128]
            yield self.X[rows], self.y[rows]


class Columns(nn.Module):
    """Some columns of a matrix."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.columns]


class StandIn(nn.Module):
    """A backbone whose layers hand out what they gave before."""

    def __init__(self, columns: list[slice]) -> None:
        super().__init__()
        for name, part in zip((*TAPS, "logits"), columns, strict=True):
            self.add_module(name, Columns(part))

    def forward(self, x: Tensor) -> Tensor:
        for name in TAPS:
            self.get_submodule(name)(x)
        return self.logits(x)


def real_wrapper(hidden_dim: int) -> Any:
    """Its wrapper around the ResNet18, with its estimate of FLOPs."""
    from earlyon.models import custom_ee

    return custom_ee(
        cifar_resnet18(), TAPS, 20, input_shape=(1, 3, 32, 32), hidden_dim=hidden_dim
    ).eval()


def trained(data: Data, setting: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Stand-in with heads trained by its second stage, and the real wrapper."""
    from earlyon.models import custom_ee
    from earlyon.training.two_stage_trainer import stage2_train_exits

    hidden_dim = setting["hidden_dim"]
    example = torch.zeros(1, data.fit.pooled.shape[1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # heads and dropout draw from the global state
        model = custom_ee(
            StandIn(data.columns),
            TAPS,
            20,
            example_args=(example,),
            hidden_dim=hidden_dim,
        )
        batches = Batches(data.fit, generator=torch.Generator().manual_seed(seed))
        epochs = setting["epochs"]
        stage2_train_exits(model, batches, epochs=epochs, on_epoch_end=lambda log: None)
    wrapper = real_wrapper(hidden_dim)
    wrapper.exit_heads.load_state_dict(model.exit_heads.state_dict())
    # The stand-in has no layers to count: it takes the estimate of the real backbone.
    model._flops_estimate = wrapper.flops_estimate
    return model.eval(), wrapper


def head_macs(model: Any) -> list[int]:
    """Of one row, counted as everything else here."""
    heads = model.exit_heads.values()
    return [count_macs(h, torch.zeros(1, h.classifier[0].in_features)) for h in heads]


def point(model: Any, cache: Any, data: Data) -> dict[str, float]:
    """Accuracy and savings, ours and its own, of the routing that is set."""
    from earlyon.core.thresholds import simulate_policy

    result = simulate_policy(cache, model)
    costs = costs_of(data.stage_macs, head_macs(model), model.config.enabled_exits)
    labels = [f"exit_{k}" for k in range(len(TAPS))] + ["final"]
    shares = np.array([result.exit_distribution.get(label, 0.0) for label in labels])
    return {
        "accuracy": result.accuracy,
        "flops_reduction": float(1 - shares @ costs / data.plain),
        "own_count": 1 - result.avg_flops_fraction,
    }


def targets(setting: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What it is asked for, by which routing policy, with temperatures or not."""
    fine = "fine" in setting
    return [
        (kind, value, policy, temperature)
        for temperature in ((False, True) if fine else (False,))
        for policy in (FINE if fine else ("confidence",))
        for kind, values in (("drop", DROPS), ("budget", BUDGETS))
        for value in values
    ]


def calibrated(
    model: Any, data: Data, setting: dict[str, Any]
) -> Iterator[tuple[tuple[str, float, str, bool], bool]]:
    """Let it choose thresholds on validation rows, for one target after the other."""
    from earlyon.core import thresholds as its

    # Temperatures have rows of their own, as its contract asks.
    fifth = np.arange(len(data.validation.target)) % 5 == 0
    every, rest = (Batches(data.validation, r) for r in (slice(None), ~fifth))
    held = Batches(data.validation, fifth)
    functions = {
        "drop": (its.calibrate_thresholds, "target_accuracy_drop"),
        "budget": (its.calibrate_thresholds_for_budget, "target_computation"),
    }
    for target in targets(setting):
        kind, value, policy, temperature = target
        model.config.routing_policy = policy
        function, name = functions[kind]
        extra = {"grid": FINE[policy]} if "fine" in setting else {}
        if temperature:
            extra |= {"fit_temperature": True, "temperature_loader": held}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*unattainable", UserWarning)
            rows = rest if temperature else every
            result = function(model, rows, **{name: value}, **extra)
        yield target, result.budget_met


def run(
    data: Data, seed: int, method: str, setting: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train its heads and ask for each accuracy and each compute budget."""
    import earlyon
    from earlyon.core.thresholds import collect_head_logits

    with Clock() as clock:
        model, wrapper = trained(data, setting, seed)
    caches = {
        name: collect_head_logits(model, Batches(part), "cpu")
        for name, part in (("validation", data.validation), ("test", data.test))
    }
    estimate = wrapper.flops_estimate
    record = {
        "method": method,
        "seed": seed,
        "setting": dict(setting),
        "version": earlyon.__version__,
        **clock.seconds,
        "depth_mmacs": (costs_of(data.stage_macs, head_macs(model)) / 1e6).tolist(),
        "stage_accuracy": [
            float((z.argmax(1) == caches["test"].targets).double().mean())
            for z in caches["test"].logits
        ],
        "own_fractions": estimate.fractions | {"reliable": estimate.reliable},
        "our_fractions": (np.cumsum(data.stage_macs)[:-1] / data.plain).tolist(),
        "backbone_accuracy": data.backbone_accuracy,
        "asked": [],
        "budget_met": [],
    }
    keys = ("accuracy", "flops_reduction", "own_count")
    record |= {name: {key: [] for key in keys} for name in caches}
    for target, met in calibrated(model, data, setting):
        record["asked"].append(list(target))
        record["budget_met"].append(met)
        for name, cache in caches.items():
            for key, value in point(model, cache, data).items():
                record[name][key].append(value)
    if setting == DEFAULT:
        record["points"] = defaults(model, wrapper, caches["test"], data)
        record["on_images"] = on_images(model, wrapper, data)
    return [record]


def defaults(model: Any, wrapper: Any, cache: Any, data: Data) -> list[dict[str, Any]]:
    """Its operating points when nothing, or only the kind of budget, is said."""
    from earlyon.core import thresholds as its

    rows, config = Batches(data.validation), model.config
    config.routing_policy, config.enabled_exits = "confidence", [True] * len(TAPS)
    config.confidence_thresholds = [0.8] * len(TAPS)
    points = [{"asked": "nothing (threshold 0.8)"} | point(model, cache, data)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*unattainable", UserWarning)
        for asked, budget in (("compute 0.8 (default)", 0.8), ("compute 0.5", 0.5)):
            its.calibrate_thresholds_for_budget(model, rows, target_computation=budget)
            points.append({"asked": asked} | point(model, cache, data))
    its.calibrate_thresholds(model, rows)
    points.append({"asked": "drop 0.01 (default)"} | point(model, cache, data))
    for name in ("confidence_thresholds", "enabled_exits"):
        setattr(wrapper.config, name, list(getattr(config, name)))
    return points


def on_images(model: Any, wrapper: Any, data: Data) -> dict[str, Any]:
    """The real wrapper on test images: as the stand-in one by one, and in batches.

    At the operating point that is set, a drop of 0.01.
    """
    images = Normalize()(torch.from_numpy(np.asarray(data.test.images[:BATCH_ROWS])))
    target = data.test.target[: len(images)]
    pooled = torch.from_numpy(data.test.pooled[: len(images)])
    with torch.inference_mode():
        given = wrapper(images[:256], mode="training")
        stood = model(pooled[:256], mode="training")
    gap = max(float((a - b).abs().max()) for a, b in zip(given, stood, strict=True))
    out: dict[str, Any] = {"rows": len(images), "largest_logit_difference": gap}
    for size in BATCHES:
        right, fraction, left = 0, 0.0, 0
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            result = wrapper.forward_inference_batched(batch)
            answer = result.predictions.argmax(1).numpy()
            right += int((answer == target[start : start + size]).sum())
            fraction += result.estimated_backbone_flops_fraction * len(batch)
            left += len(batch) * (result.exit_taken >= 0)
        out[f"batch_{size}"] = {
            "accuracy": right / len(images),
            "own_count": 1 - fraction / len(images),
            "left_early": left / len(images),
        }
    return out
