import pickle
from collections import OrderedDict
from functools import cache

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import (
    create_feature_extractor,
    get_graph_node_names,
)

from sk_calex.backbone._stages import Stages, inference_mode_for
from sk_calex.utils._flops import count_macs
from tests._models import TinyNet, as_stages

from ._stage_models import TAPS, Around, Lambda, Residual, build, chain, images, run


@cache
def split(name):
    return Stages.split(build(name), TAPS[name], images(2))


# ---------------------------------------------------------------- what stages compute


@pytest.mark.parametrize("name", TAPS)
def test_stages_reproduce_the_module(name):
    module, stages, x = build(name), split(name), images(3)
    with inference_mode_for(module):
        outputs = run(stages, x)
        torch.testing.assert_close(outputs[-1], module(x), rtol=1e-10, atol=1e-12)
    assert stages.names == tuple(TAPS[name])
    assert stages.n_taps == len(TAPS[name])
    assert stages.output_shapes == tuple(tuple(o.shape[1:]) for o in outputs)


@pytest.mark.parametrize("name", TAPS)
def test_compaction_equals_running_the_subset(name):
    module, stages, x = build(name), split(name), images(4)
    rows = [torch.tensor([3, 1, 0]), torch.tensor([2, 0])]  # leaves samples 0 and 3
    with inference_mode_for(module):
        outputs = run(stages, x, rows)
        expected = module(x[[0, 3]])
        _, none_left = stages.advance(0, stages.start(x))
        assert all(
            len(value) == 0
            for value in stages.take(none_left, torch.tensor([], dtype=torch.int64))
        )
    torch.testing.assert_close(outputs[-1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TAPS)
def test_macs_add_up_to_the_module(name):
    module, stages = build(name), split(name)
    assert sum(stages.macs) == count_macs(module, images(1))
    assert len(stages.macs) == stages.n_taps + 1
    assert stages.macs[0] > 0


def test_macs_of_each_stage_by_hand():
    stages = Stages.split(Residual(), ["first", "second"], torch.randn(2, 6))
    assert stages.macs == (36, 36, 18)


def test_every_operation_can_be_a_tap():
    # torchvision's feature extraction is the oracle, for the names and the values.
    # It hands out what in-place layers write to, so there must be none.
    module = build("resnet")
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    try:
        known = get_graph_node_names(module)[1]
        # A module that is called twice has its first call under another name.
        taps = [n.replace("relu", "relu_0") if n in TWICE else n for n in known[1:-1]]
        x = images(2)
        with inference_mode_for(module):
            stages = Stages.split(module, taps, x)
            reference = create_feature_extractor(
                module, known[1:], suppress_diff_warning=True
            )
            outputs, expected = run(stages, x), reference(x)
        assert len(taps) > 60
        for output, name in zip(outputs, known[1:], strict=True):
            torch.testing.assert_close(output, expected[name], rtol=0, atol=1e-12)
    finally:
        for layer in module.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = True


TWICE = {f"layer{i}.{j}.relu" for i in range(1, 5) for j in range(2)}


def test_default_arguments_and_own_parameters():
    module, x = Residual(), torch.randn(5, 6)
    stages = Stages.split(module, ["first", "relu", "second", "add_2"], x)
    with inference_mode_for(module):
        outputs = run(stages, x)
        torch.testing.assert_close(outputs[0], module.first(x * module.scale))
        torch.testing.assert_close(outputs[1], outputs[0].relu())
        torch.testing.assert_close(outputs[-1], module(x))
        _, state = stages.advance(0, stages.start(x))
    assert len(state) == 2  # the input and the tap; parameters do not cross


def test_the_tap_is_what_the_module_returns():
    # Not its last operation, which here is computed for nothing.
    class Odd(nn.Module):
        def forward(self, x):
            y = x + 1
            torch.tanh(y)
            return y

    module, x = chain(Odd()), torch.randn(4, 6)
    for given, tap in ((module, "1"), (Around(module), "body.1")):
        stages = Stages.split(given, [tap], x)
        with inference_mode_for(given):
            assert torch.equal(run(stages, x)[0], module[0](x) + 1)


@pytest.mark.parametrize("traced", [False, True])
def test_the_tap_may_be_the_input_itself(traced):
    module, x = nn.Sequential(Lambda(lambda x: x), nn.Linear(6, 3)), torch.randn(4, 6)
    given, tap = (Around(module), "body.0") if traced else (module, "0")
    stages = Stages.split(given, [tap], x)
    with inference_mode_for(given):
        outputs = run(stages, x)
        assert torch.equal(outputs[0], x)
        assert torch.equal(outputs[1], module(x))


def test_tensors_created_in_forward_do_not_cross():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.outer = nn.Linear(6, 3)

        def forward(self, x):
            offset = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 2
            return self.outer(self.inner(x + offset).relu() + offset)

    module, x = Offset(), torch.randn(4, 6)
    names = set(vars(module))
    stages = Stages.split(module, ["inner"], x)
    with inference_mode_for(module):
        torch.testing.assert_close(run(stages, x)[-1], module(x))
        assert len(stages.advance(0, stages.start(x))[1]) == 1
    assert set(vars(module)) == names  # tracing leaves nothing on the module


def test_flattened_names_do_not_collide():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ModuleDict({"b_c": nn.Linear(6, 6)})
            self.a_b = nn.ModuleDict({"c": nn.Linear(6, 6), "end": nn.Linear(6, 3)})

        def forward(self, x):
            return self.a_b["end"](self.a_b["c"](self.a["b_c"](x)).relu())

    module = Nested()
    x = torch.randn(4, 6)
    stages = Stages.split(module, ["relu"], x)
    with inference_mode_for(module):
        torch.testing.assert_close(run(stages, x)[-1], module(x))


# -------------------------------------------------------------- the module stays as is


@pytest.mark.parametrize("name", ["resnet", "densenet", "vit"])
def test_module_is_unchanged(name):
    module = build(name)
    next(module.children()).eval()
    flags = [m.training for m in module.modules()]
    before = {k: (v.data_ptr(), v.clone()) for k, v in module.state_dict().items()}
    stages = Stages.split(module, TAPS[name], images(2))
    with inference_mode_for(module):
        run(stages, images(3))
    after = module.state_dict()
    assert after.keys() == before.keys()
    for key, (pointer, value) in before.items():
        assert after[key].data_ptr() == pointer
        assert torch.equal(after[key], value)
    assert [m.training for m in module.modules()] == flags


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_weights_are_shared(name):
    module, stages, x = build(name), split(name), images(3)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    try:
        with inference_mode_for(module):
            before = run(stages, x)[-1].clone()
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.mul_(2)
            after = run(stages, x)[-1]
            assert not torch.allclose(before, after)
            torch.testing.assert_close(after, module(x), rtol=1e-10, atol=1e-12)
    finally:
        module.load_state_dict(state)


def test_module_flags_are_restored_after_an_error():
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 3)).train()
    module[1].eval()
    with pytest.raises(RuntimeError):
        Stages.split(module, ["0"], torch.randn(2, 7))
    assert [m.training for m in module.modules()] == [True, True, False, True]


def test_functional_dropout_is_traced_as_off():
    class Drop(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    module, x = Around(chain(nn.ReLU(), Drop())).train(), torch.randn(4, 6)
    stages = Stages.split(module, ["body.1"], x)
    assert module.training
    with inference_mode_for(module):
        assert torch.equal(run(stages, x)[-1], run(stages, x)[-1])
        torch.testing.assert_close(run(stages, x)[-1], module(x))


@pytest.mark.parametrize(
    "write",
    [
        nn.ReLU(inplace=True),
        lambda y: y.view(-1, 2, 3).transpose(1, 2).relu_().transpose(1, 2).flatten(1),
        lambda y: torch.add(y, 1.0, out=y),
        lambda y: (torch._foreach_add_([y], 1.0), y)[1],
    ],
    ids=["layer", "view", "out", "list"],
)
@pytest.mark.parametrize("traced", [False, True])
def test_in_place_layers_do_not_reach_what_was_handed_out(write, traced):
    module = nn.Sequential(
        write if isinstance(write, nn.Module) else Lambda(write),
        nn.Linear(6, 6),
        write if isinstance(write, nn.Module) else Lambda(write),
        nn.Linear(6, 3),
    )
    given, tap = (Around(module), "body.1") if traced else (module, "1")
    x = torch.randn(5, 6)
    kept = x.clone()
    stages = Stages.split(given, [tap], x)
    with inference_mode_for(given):
        expected = given(x.clone())
        output, state = stages.advance(0, stages.start(x))
        handed_out = output.clone()
        first, _ = stages.advance(1, state)
        second, _ = stages.advance(1, state)
    assert torch.equal(x, kept)
    assert torch.equal(output, handed_out)
    torch.testing.assert_close(first, expected)
    assert torch.equal(first, second)


# ----------------------------------------------------------------- nn.Sequential, no fx


def test_sequential_is_sliced_without_tracing():
    branch = Lambda(lambda x: x * 2 if x.sum() > 0 else -x)  # fx cannot follow this
    relu = nn.ReLU()
    module = nn.Sequential(
        OrderedDict(a=nn.Linear(6, 6), b=relu, c=branch, d=relu, e=nn.Linear(6, 3))
    )
    x = torch.randn(5, 6)
    # b and d are one object: as names of children they still are two taps.
    stages = Stages.split(module, ["a", "b", "d"], x.repeat(2, 1))
    with inference_mode_for(module):
        outputs = run(stages, x)
        assert torch.equal(outputs[0], module.a(x))
        assert torch.equal(outputs[1], module.a(x).relu())
        assert torch.equal(outputs[-1], module(x))
    assert stages.output_shapes == ((6,), (6,), (6,), (3,))
    assert stages.macs == (36, 0, 0, 18)


def test_sequential_with_a_tap_inside_a_child_is_traced():
    module, x = nn.Sequential(chain(nn.ReLU()), nn.Linear(3, 3)), torch.randn(4, 6)
    stages = Stages.split(module, ["0.0", "0"], x)
    with inference_mode_for(module):
        outputs = run(stages, x)
        assert torch.equal(outputs[1], module[0](x))
        assert torch.equal(outputs[2], module(x))


def test_sequential_subclass_with_its_own_forward_is_traced():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    module = Doubled(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(4, 6)
    stages = Stages.split(module, ["1"], x)
    with inference_mode_for(module):
        torch.testing.assert_close(run(stages, x)[-1], module(x))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_example_rows(n):
    module = Residual()
    stages = Stages.split(module, ["first"], torch.randn(n, 6))
    assert stages.output_shapes == ((6,), (3,))
    assert stages.macs == (36, 54)


class Keeps(nn.Module):
    """Keeps its activations, as models do that show their attention."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.every, self.known = [], None

    def forward(self, x):
        x = self.first(x.flatten(1))
        self.kept, self.known = x, x
        self.every.append(x)
        return self.last(x.relu())


def test_tracing_leaves_no_trace_on_the_module():
    module = Keeps().eval()
    x = torch.randn(3, 4)
    stages = Stages.split(module, ["first"], x)
    for kept in (module.kept, module.known, *module.every):
        assert isinstance(kept, torch.Tensor)
    pickle.dumps(module)
    every = len(module.every)
    with inference_mode_for(module):
        state = stages.start(x)
        for k in range(2):
            output, state = stages.advance(k, state)
        torch.testing.assert_close(output, module(x))
    assert len(module.every) == every + 1  # of the module itself


# -- modules that stages call ----------------------------------------------------------


def called_names(module, stages):
    names = {part: name for name, part in module.named_modules()}
    return {names[part] for part in stages.called if part in names}


def test_stages_know_the_layers_of_torch_that_they_call():
    net, x = TinyNet(), torch.rand(2, 3, 16, 16)
    stages = Stages.split(net, ["stem"], x, fast=True)
    # Convolutions are folded and packed copies, blocks are traced through.
    assert called_names(net, stages) >= {"stem.2", "block1.2", "head.0", "head.2"}
    assert "stem" not in called_names(net, stages)


def test_stages_do_not_vouch_for_code_of_others():
    net, x = TinyNet(), torch.rand(2, 3, 16, 16)
    net.stem[2].forward = lambda x: x.relu()
    assert Stages.split(net, ["stem"], x).called is None
    assert Stages.split(as_stages(TinyNet()), ["stem"], x).called is None
