"""What a stage says, against plain loops over rows of probabilities."""

import math

import numpy as np
import pytest
import torch

from sk_calex.calibration import StageAnswer, StageTable

FIELDS = ("predicted", "confidence", "entropy", "gap", "gate", "streak")


@pytest.fixture
def proba():
    """Five stages, 60 samples, 4 classes; zeros and ties among them."""
    counts = np.random.default_rng(0).integers(0, 4, (5, 60, 4)).astype(float)
    counts[..., 0] += counts.sum(axis=-1) == 0
    return counts / counts.sum(axis=-1, keepdims=True)


def answers(proba, **more):
    """The answers of all stages, each built on the one before."""
    said, out = None, []
    for stage in proba:
        said = StageAnswer(stage, said, **more)
        out.append(said)
    return out


def test_signals_by_hand(proba):
    for stage, said in zip(proba, answers(proba), strict=True):
        for i, row in enumerate(stage.tolist()):
            ordered = sorted(row, reverse=True)
            assert said.predicted[i] == row.index(ordered[0])
            assert said.confidence[i] == ordered[0]
            assert said.gap[i] == ordered[0] - ordered[1]
            slow = -sum(p * math.log(p) for p in row if p > 0)
            assert said.entropy[i] == pytest.approx(slow, abs=1e-15)


def test_a_certain_answer_has_entropy_zero():
    said = StageAnswer(np.array([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    np.testing.assert_allclose(said.entropy, [0, math.log(3)])
    assert not np.signbit(said.entropy).any()


def test_streak_by_loop(proba):
    predicted = proba.argmax(axis=2)
    lengths = set()
    for k, said in enumerate(answers(proba)):
        for i in range(60):
            run = 1
            while k - run >= 0 and predicted[k - run, i] == predicted[k, i]:
                run += 1
            assert said.streak[i] == run
            lengths.add(run)
    assert {1, 2, 3} <= lengths


def test_keep_is_the_answer_of_those_rows(proba):
    gate = np.linspace(0, 1, 60)
    memory = torch.arange(120.0).reshape(60, 2)
    before, said = answers(proba[:2], gate=gate, memory=memory)
    rows = np.array([3, 59, 3, 0])
    kept = said.keep(rows)
    np.testing.assert_array_equal(kept.proba, proba[1][rows])
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(kept, field), getattr(said, field)[rows])
    assert torch.equal(kept.memory, memory[rows])
    # The next stage goes on counting from there.
    np.testing.assert_array_equal(
        StageAnswer(proba[2][rows], kept).streak,
        StageAnswer(proba[2], said).streak[rows],
    )
    assert before.streak.max() == 1
    assert said.streak.max() == 2


def test_keep_without_gate_and_memory(proba):
    kept = StageAnswer(proba[0]).keep(np.array([1, 2]))
    assert kept.gate is None
    assert kept.memory is None
    assert StageAnswer(proba[0]).keep(np.empty(0, dtype=np.intp)).predicted.shape == (
        0,
    )


# -- tables ----------------------------------------------------------------------------


def test_a_table_says_what_the_answers_say(proba):
    table = StageTable.from_probabilities(proba.tolist())
    assert (table.n_stages, table.n_samples, table.n_classes) == (5, 60, 4)
    for k, said in enumerate(answers(proba)):
        for field in FIELDS:
            expected, got = getattr(said, field), getattr(table.stage(k), field)
            if expected is None:
                assert got is None
            else:
                np.testing.assert_array_equal(got, expected)
                assert got.dtype == expected.dtype


def test_a_table_may_be_put_together_of_parts(proba):
    gates = np.random.default_rng(1).uniform(size=(5, 60))
    whole = StageTable.empty(5, 60, 4)
    parts = StageTable.empty(5, 60, 4)
    for k in range(5):
        whole.put(k, slice(None), StageAnswer(proba[k], gate=gates[k]))
        rows = np.arange(20, 60)
        parts.put(k, slice(0, 20), StageAnswer(proba[k][:20], gate=gates[k][:20]))
        parts.put(k, rows, StageAnswer(proba[k][rows], gate=gates[k][rows]))
    for k in range(5):
        for field in FIELDS:
            expected = getattr(whole.stage(k), field)
            np.testing.assert_array_equal(getattr(parts.stage(k), field), expected)
        np.testing.assert_array_equal(whole.stage(k).gate, gates[k])


@pytest.mark.parametrize("rows", [np.array([5, 5, 0]), np.arange(60) % 7 == 0])
def test_take_is_the_table_of_those_rows(proba, rows):
    taken = StageTable.from_probabilities(proba).take(rows)
    expected = StageTable.from_probabilities(proba[:, rows])
    assert taken.n_classes == 4
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(taken, field), getattr(expected, field))


def test_a_gate_that_is_there_for_some_rows_only_is_given(proba):
    """Such as where folds were filled in by and by; no rule exits on a NaN."""
    table = StageTable.empty(2, 4, 4)
    table.put(0, slice(0, 2), StageAnswer(proba[0][:2], gate=np.array([0.1, 0.9])))
    np.testing.assert_array_equal(table.stage(0).gate, [0.1, 0.9, np.nan, np.nan])
    assert table.stage(1).gate is None


@pytest.mark.parametrize("shape", [(3,), (10, 3), (1, 10, 3), (2, 2, 10, 3)])
def test_shapes_that_are_no_stages(shape):
    message = r"shape \(n_stages, n_samples, n_classes\).*got shape.*predict_proba"
    with pytest.raises(ValueError, match=message):
        StageTable.from_probabilities(np.full(shape, 1 / 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p * 2, r"probabilities\[0\] must hold probabilities.*row sums"),
        (lambda p: np.where(np.arange(4) == 1, np.nan, p), r"\[0\] contains NaN"),
        (lambda p: p[:, :0], r"probabilities\[0\] is empty"),
        (lambda p: p[:, :, :1], r"probabilities\[0\] must.*at least 2 classes"),
    ],
)
def test_entries_that_are_no_probabilities(proba, spoil, message):
    with pytest.raises(ValueError, match=message):
        StageTable.from_probabilities(spoil(proba))


def test_the_stage_at_fault_is_named(proba):
    proba[3, 7] = [0.5, 0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"probabilities\[3\] must hold"):
        StageTable.from_probabilities(proba)
