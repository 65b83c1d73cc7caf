from math import exp

import numpy as np
import pytest
import torch

from sk_calex.utils import _validation
from sk_calex.utils._validation import (
    as_tensor,
    check_are_classes,
    check_finite,
    check_margin,
    check_probabilities,
    check_sample_weight,
    near_names,
    resolve_device,
    sent_to,
    softmax64,
)

# -- resolve_device --------------------------------------------------------------------


@pytest.mark.parametrize(("cuda", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_device_is_cuda_if_present(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert resolve_device("auto") == torch.device(expected)


@pytest.fixture
def tried_anew():
    _validation._computes.cache_clear()
    yield
    _validation._computes.cache_clear()


@pytest.mark.parametrize("seen", ["xpu", "mps"])
@pytest.mark.parametrize("works", [True, False])
def test_auto_takes_another_accelerator_where_it_works(monkeypatch, seen, works):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: seen == "xpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: seen == "mps")
    asked = []

    def computes(device, needs_float64):
        asked.append((device.type, needs_float64))
        return works

    monkeypatch.setattr(_validation, "_computes", computes)
    found = resolve_device("auto", needs_float64=True)
    assert found == torch.device(seen if works else "cpu")
    assert asked == [(seen, True)]


def test_a_device_is_tried_by_what_it_computes(tried_anew, monkeypatch):
    cpu = torch.device("cpu")
    assert _validation._computes(cpu, True)
    # Has shapes, and no values: as a device whose operators are missing.
    assert not _validation._computes(torch.device("meta"), False)
    _validation._computes.cache_clear()
    pool, calls = _validation.F.adaptive_avg_pool2d, []

    def pool_wrongly_at_first(maps, size):
        calls.append(size)
        return pool(maps, size) + (len(calls) == 1) * torch.arange(4.0)

    monkeypatch.setattr(_validation.F, "adaptive_avg_pool2d", pool_wrongly_at_first)
    assert not _validation._computes(cpu, False)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_named_device_is_used(device):
    assert resolve_device(device) == torch.device("cpu")


def test_cuda_without_a_cuda_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda:0'.*no CUDA device.*'cpu'"):
        resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", None, 1.5])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match=f"device={device!r} is not a torch device"):
        resolve_device(device)


# -- near_names ------------------------------------------------------------------------


def test_near_names_are_the_closest():
    known = ["layer1.0.conv1", "layer1.0.conv2", "avgpool", "fc"]
    names = near_names("layer1.0.conv", iter(known))
    assert sorted(names.split(", ")) == ["'layer1.0.conv1'", "'layer1.0.conv2'"]
    assert near_names("layer1.0.conv1", known, n=1) == "'layer1.0.conv1'"


def test_the_first_names_stand_in_where_none_is_near():
    assert near_names("zzz", ["a", "b", "c"], n=2) == "'a', 'b'"
    assert near_names("zzz", []) == ""


# -- check_finite ----------------------------------------------------------------------

BAD = [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [np.inf, -np.inf]]


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("values", BAD)
def test_nan_and_infinity_are_refused(make, values):
    # Under warnings as errors: summing opposite infinities must not warn first.
    with pytest.raises(ValueError, match=r"^logits contains NaN or infinity\. Look\.$"):
        check_finite(make(values), "logits", "Look.")


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.0, 1.0]),
        np.array([], dtype=np.float32),
        np.array([1, 2]),
        np.full(2, 1.7e308),
        torch.zeros(3),
        torch.zeros(0),
        torch.tensor([1, 2]),
        torch.full((2,), 3e38),
        torch.full((4,), 6e4, dtype=torch.float16),
    ],
)
def test_finite_values_pass_even_where_their_sum_overflows(values):
    assert check_finite(values, "X", "") is None


# -- check_margin ----------------------------------------------------------------------


@pytest.mark.parametrize("margin", [-3, 0, 0.5, np.float32(0.25)])
def test_margins_come_back_as_floats(margin):
    checked = check_margin(margin)
    assert type(checked) is float
    assert checked == margin


@pytest.mark.parametrize("margin", [1, 2.0, np.nan, np.inf, -np.inf])
def test_other_margins_are_refused_by_name(margin):
    with pytest.raises(
        ValueError, match=r"^alignment_margin=.*a finite number below 1"
    ):
        check_margin(margin, "alignment_margin")
    with pytest.raises(ValueError, match=r"^margin="):
        check_margin(margin)


# -- check_probabilities ---------------------------------------------------------------


def test_probabilities_come_back_as_float64():
    X = np.array([[0.25, 0.75], [1, 0]], dtype=np.float32)
    checked = check_probabilities(X)
    assert checked.dtype == np.float64
    np.testing.assert_array_equal(checked, X)
    np.testing.assert_array_equal(check_probabilities(X.tolist()), X)


def test_rows_may_miss_one_by_rounding():
    check_probabilities([[0.3334, 0.3333, 0.3334]])
    check_probabilities(np.full((1, 1000), 1e-3, dtype=np.float16))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([0.5, 0.5], r"soft must hold class probabilities .* got shape \(2,\)"),
        ([[[0.5, 0.5]]], r"soft must hold class .* got shape \(1, 1, 2\)"),
        ([[1.0]], "soft must hold class probabilities .* at least 2 classes"),
        (np.empty((0, 3)), r"0 sample\(s\).*soft is empty"),
        ([[np.nan, 0.5]], "soft contains NaN or infinity.*predict_proba"),
        ([[np.inf, -np.inf]], "soft contains NaN or infinity"),
        ([[1.5, -0.5]], "soft must hold probabilities.*smallest entry is -0.5"),
        ([[0.5, 0.5], [0.5, 0.4]], "soft must hold prob.*row sums go from 0.9 to 1"),
        ([[0.5, 0.502]], "soft must hold probabilities.*decision_function"),
    ],
)
def test_what_is_no_probability_is_refused_by_name(X, message):
    with pytest.raises(ValueError, match=message):
        check_probabilities(X, "soft")


# -- check_sample_weight ---------------------------------------------------------------


@pytest.mark.parametrize("labels", [np.arange(300) // 2 * 3, np.arange(99).astype(str)])
def test_classes_of_a_row_or_two_are_classes(labels):
    """Without the warning of scikit-learn that they may be numbers to predict."""
    check_are_classes(labels)


def test_numbers_to_predict_are_no_classes():
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        check_are_classes(np.linspace(0, 1, 30))


def test_sample_weights_come_back_as_float64():
    X = np.zeros((3, 2), dtype=np.float32)
    for weight in ([0, 1, 2], np.array([0, 1, 2], dtype=np.float32)):
        checked = check_sample_weight(weight, X)
        assert checked.dtype == np.float64
        assert checked.tolist() == [0, 1, 2]
    assert check_sample_weight(None, X).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "weight", [[0, 0], [1, -1], [1, np.nan], [1, np.inf], [1], [[1, 1]]]
)
def test_bad_sample_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"(?i)sample.weight"):
        check_sample_weight(weight, np.zeros((2, 2)))


# -- as_tensor -------------------------------------------------------------------------


def test_a_tensor_is_a_view_of_the_array():
    array = np.arange(6.0).reshape(2, 3)
    tensor = as_tensor(array)
    array[0, 1] = -1
    assert tensor[0, 1] == -1


def test_a_read_only_memory_map_is_not_copied(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6.0))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    tensor = as_tensor(rows)
    assert tensor.data_ptr() == rows.ctypes.data
    assert tensor.tolist() == [0, 1, 2, 3, 4, 5]


# -- softmax64 -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_softmax_is_that_of_the_definition(make):
    logits = [[0.5, -1.0, 2.0], [3.0, 3.0, -2.5]]
    found = softmax64(make(logits))
    slow = [[exp(z) / sum(exp(x) for x in row) for z in row] for row in logits]
    np.testing.assert_allclose(found, slow, rtol=1e-14)
    assert found.dtype == np.float64


def test_softmax_takes_the_last_axis():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    rows = softmax64(logits.reshape(6, 4)).reshape(2, 3, 4)
    np.testing.assert_array_equal(softmax64(logits), rows)


def test_softmax_of_large_logits_neither_overflows_nor_warns():
    found = softmax64([[1e300, -1e300], [-1000.0, -1000.0], [0.0, -np.inf]])
    assert found.tolist() == [[1, 0], [0.5, 0.5], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_is_taken_in_float64_whatever_the_logits_are(dtype):
    logits = torch.tensor([[1.0, 0.25, -3.0]], dtype=dtype)
    exact = softmax64(np.array([[1.0, 0.25, -3.0]]))
    np.testing.assert_array_equal(softmax64(logits), exact)


def test_softmax_of_logits_under_autograd():
    logits = torch.zeros(1, 2, requires_grad=True)
    assert softmax64(logits).tolist() == [[0.5, 0.5]]


def test_only_arrays_that_may_not_be_written_need_a_warning_silenced(monkeypatch):
    """To enter it makes Python forget which warnings it has shown."""
    array = np.arange(3.0)
    locked = array.copy()
    locked.flags.writeable = False
    assert as_tensor(locked).tolist() == [0, 1, 2]

    def fail(*args, **kwargs):
        raise AssertionError("entered")

    monkeypatch.setattr("sk_calex.utils._validation.warnings.catch_warnings", fail)
    assert as_tensor(array).tolist() == [0, 1, 2]


# -- sent_to ---------------------------------------------------------------------------


def test_what_is_there_is_not_copied():
    tensor = torch.arange(3)
    assert sent_to(tensor, torch.device("cpu")) is tensor
    assert sent_to(tensor, torch.device("meta")).device.type == "meta"


def test_cuda_gets_it_from_pinned_memory(monkeypatch):
    sent = []

    class Recording:
        def pin_memory(self):
            sent.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            sent.append((device.type, non_blocking))
            return self

    sent_to(Recording(), torch.device("cuda"))
    assert sent == ["pinned", ("cuda", True)]
