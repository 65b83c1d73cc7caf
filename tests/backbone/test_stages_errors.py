import pytest
import torch
from torch import nn

from sk_calex.backbone._stages import Stages, inference_mode_for

from ._stage_models import Around, Lambda, Residual, build, chain, images, run


def fails(module, taps, message, x=None, error=ValueError):
    with pytest.raises(error, match=message) as caught:
        Stages.split(module, taps, torch.randn(3, 6) if x is None else x)
    return caught.value


def test_untraceable_module():
    module = Around(chain(Lambda(lambda x: x if x.sum() > 0 else -x)))
    error = fails(module, ["body.0"], r"cannot trace Around.*nn\.Sequential\(Ordered")
    assert isinstance(error.__cause__, torch.fx.proxy.TraceError)
    # A misspelt name is said first: nothing else would help.
    fails(module, ["body.O"], r"tap 'body\.O' is not in the module.*'body\.0'")


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["frist"], r"'frist' is not in the module\. Near names: 'first'"),
        (["second", "nothing"], r"named_modules\(\)"),
        ([""], "tap '' is not in the module"),
        (["first", "second", "first"], "tap 'first' is repeated"),
        (["second", "first"], r"order of execution; give taps=\['first', 'second'\]"),
        (["last"], "tap 'last' is the module's output"),
        (["first", "last"], "tap 'last' is the module's output"),
        ([], "taps is empty"),
    ],
)
def test_bad_taps_of_a_traced_module(taps, message):
    fails(Residual(), taps, message)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["3"], "tap '3' is the module's output"),
        (["2", "1"], r"give taps=\['1', '2'\]"),
        (["4"], "tap '4' is not in the module"),
    ],
)
def test_bad_taps_of_a_sequential(taps, message):
    fails(chain(nn.ReLU(), nn.Tanh()), taps, message)


@pytest.mark.parametrize("taps", ["first", ["first", 1], None, 3])
def test_taps_of_another_type(taps):
    fails(Residual(), taps, "taps must be", error=TypeError)


def test_other_arguments_of_another_type():
    fails(torch.relu, ["a"], "module must be a torch.nn.Module", error=TypeError)
    with pytest.raises(TypeError, match=r"example must be a torch\.Tensor"):
        Stages.split(Residual(), ["first"], [[1.0] * 6])
    fails(Residual(), ["first"], r"shape \(0, 6\): give at least one", torch.ones(0, 6))
    fails(Residual(), ["first"], r"shape \(\): give at least one", torch.tensor(1.0))


def test_two_names_of_one_value():
    module = Around(chain(nn.ReLU()))
    module.body[1] = nn.Sequential(nn.Tanh(), nn.ReLU())
    fails(module, ["body.1", "body.1.1"], "'body.1' and 'body.1.1' are the same value")


def test_a_module_called_twice_is_ambiguous():
    module, x = build("resnet"), images(2)
    message = r"called 2 times.*\['layer1\.0\.relu_0', 'layer1\.0\.relu_1'\]"
    fails(module, ["layer1.0.relu"], message, x)
    taps = ["layer1.0.relu_0", "layer1.0.relu_1", "layer1.1"]
    stages = Stages.split(module, taps, x)
    reference = Stages.split(module, ["layer1.0"], x)
    with inference_mode_for(module):
        assert torch.equal(run(stages, x)[1], run(reference, x)[0])

    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    fails(
        Around(nn.Sequential(block, block, nn.Linear(6, 3))),
        ["body.0"],
        r"called 2 times.*\['body\.0\.1_0', 'body\.0\.1_1'\]",
    )


def test_a_module_without_an_output_of_its_own():
    module = Residual()
    module.unused = nn.Linear(2, 2)
    fails(module, ["unused"], "'unused' has no output of its own")
    fails(
        build("vit"),
        ["encoder.layers.encoder_layer_0.self_attention.out_proj"],
        "inside a torch.nn layer",
        images(2),
    )


@pytest.mark.parametrize(
    ("function", "undo", "what", "traced"),
    [
        (lambda x: {"a": x, "n": 3}, lambda x: x["a"], "dict with .*'int'", False),
        (lambda x: {"a": x}, lambda x: x["a"].relu(), "dict for a batch of 1", True),
        (
            lambda x: x.view(-1, 3),
            lambda x: x.view(-1, 6),
            r"\(2, 3\) for a .* 1",
            False,
        ),
        (
            lambda x: x.view(-1, 3),
            lambda x: x.view(-1, 6),
            r"\(2, 3\) for a .* 1",
            True,
        ),
        (lambda x: x > 0, lambda x: x.float(), r"dtype torch\.bool", False),
        (lambda x: (9 * x).int(), lambda x: x.float(), r"dtype torch\.int32", True),
        (torch.fft.fft, lambda x: x.real, r"dtype torch\.complex64", True),
        (
            lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
            torch.dequantize,
            r"dtype torch\.quint8",
            False,
        ),
    ],
    ids=["numbers", "dict", "rows", "rows fx", "bool", "int", "complex", "quantised"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_tap_must_be_a_real_tensor_with_a_row_per_sample(
    function, undo, what, traced
):
    module = chain(function, undo)
    given, tap = (Around(module), "body.1") if traced else (module, "1")
    fails(given, [tap], f"'{tap}'.*{what}")


def test_a_tap_must_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(2, 6))

        def forward(self, x):
            return self.bias * 2

    class Plus(nn.Module):
        def __init__(self, constant):
            super().__init__()
            self.constant, self.last = constant, nn.Linear(6, 3)

        def forward(self, x):
            return self.last(x + self.constant(x).sum(0))

    fails(Plus(Constant()), ["constant"], r"'constant' is .* \(2, 6\) for a batch of 1")
    ones = Lambda(lambda x: torch.ones(2, 6))
    fails(Plus(ones), ["constant"], "'constant' returns a Tensor; .* from the input")


def test_a_value_without_rows_cannot_cross():
    class Windows(nn.Module):
        """Two windows a sample, side by side along the first dimension."""

        def __init__(self):
            super().__init__()
            self.early, self.late = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            windows = x.reshape(-1, 3)
            return self.late(self.early(x) + windows.reshape(-1, 6))

    message = r"cannot be cut at tap 'early': 'reshape', .* a tensor of shape \(2, 3\)"
    fails(Windows(), ["early"], message)
    # Moved to where the value is not needed any more, the same module is fine.
    Stages.split(Windows(), ["add"], torch.randn(3, 6))


@pytest.mark.parametrize("traced", [False, True])
def test_the_module_must_return_logits(traced):
    def given(function):
        module = chain(nn.ReLU())
        module.append(Lambda(function))
        return Around(module) if traced else module

    tap = ["body.0" if traced else "0"]
    fails(given(lambda x: (x, x)), tap, "a tuple of 2: it must return one tensor")
    fails(given(lambda x: {"a": x}), tap, r"keys \['a'\]; say .* output='logits'")
    fails(given(lambda x: 3), tap, "the module's output is a int for a batch of 1")
    fails(given(lambda x: x.sum(0)), tap, r"the module's output is .* shape \(3,\)")
    fails(given(lambda x: x.argmax(1)), tap, "floating-point.*int64")
    fails(given(lambda x: x / 0.0 * 0.0), tap, "finite.*nan")


@pytest.mark.parametrize("traced", [False, True])
def test_modules_that_cannot_exit(traced):
    def given(function):
        module = chain(nn.ReLU(), function)
        return Around(module) if traced else module

    tap = ["body.1" if traced else "1"]
    fails(given(lambda x: x - x.mean(0)), tap, "depends on the other samples")
    fails(given(lambda x: x + torch.rand_like(x)), tap, "different outputs")


@pytest.mark.parametrize("n_rows", [1, 2])
def test_a_module_that_mixes_samples_is_refused_on_equal_rows_too(n_rows):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    stages = nn.Sequential(nn.Flatten(), Centred(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="depends on the other samples"):
        Stages.split(stages, ["1"], torch.ones(n_rows, 4))


def test_writing_through_a_second_name_is_refused():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.tap = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            y = self.first(x)
            view = y.view(-1, 6)
            z = self.tap(y)
            y.relu_()
            return view + y + z

    fails(Aliased(), ["tap"], "do not reproduce the module")


def test_hooks_of_what_is_taken_apart_are_refused():
    module = Around(chain(nn.ReLU()))
    hook = module.body.register_forward_hook(lambda *_: None)
    fails(module, ["body.0"], r"'body', of class Sequential, has forward hooks.*remove")
    hook.remove()
    Stages.split(module, ["body.0"], torch.randn(3, 6))
    explicit = chain(nn.ReLU())
    explicit[0].register_forward_hook(lambda *_: None)  # run as a whole: called
    Stages.split(explicit, ["0"], torch.randn(3, 6))
    explicit.register_forward_pre_hook(lambda *_: None)
    fails(explicit, ["0"], "module '', of class Sequential, has forward hooks")


def test_autocast_inside_forward_is_refused():
    def inside(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nn.functional.linear(x, torch.eye(6)).float()

    fails(chain(inside), ["0"], r"Sequential uses torch\.autocast.*amp='bfloat16'")


@pytest.mark.parametrize("output", ["scores", 5, "0"])
def test_an_output_that_is_not_there_is_refused(output):
    module = chain(nn.ReLU())
    module.append(Lambda(lambda x: {"logits": x} if output == "scores" else (x,)))
    with pytest.raises(ValueError, match=f"output={output!r} is no part of what"):
        Stages.split(module, ["0"], torch.randn(3, 6), output=output)
