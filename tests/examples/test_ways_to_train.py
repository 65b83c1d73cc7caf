"""The benchmark of ways to train: views, mixtures, averages, gains within a seed."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import _front_judge
import front
import ways_to_train
from ways_to_train import Known, Way, ask, mirror, shift, train

from tests.examples.test_front import a_task


@pytest.fixture(scope="module")
def known():
    task = a_task()
    noise = np.random.default_rng(1)
    # In place of images that are changed: other rows of the same classes.
    task.views = lambda rows, change: (
        task.X[rows] + noise.normal(size=task.X[rows].shape).astype(np.float32)
    )
    return Known(task)


def test_images_are_mirrored_and_shifted_into_zeros():
    images = np.arange(1, 2 * 3 * 6 * 5 + 1, dtype=np.uint8).reshape(2, 3, 6, 5)
    np.testing.assert_array_equal(mirror(mirror(images)), images)
    np.testing.assert_array_equal(mirror(images)[..., 0], images[..., -1])
    moved = shift(images)
    assert moved.shape == images.shape
    for image, before in zip(moved, images, strict=True):
        kept = np.isin(image, before)
        assert np.all(kept | (image == 0))


@pytest.mark.parametrize("way", ways_to_train.WAYS.values(), ids=ways_to_train.WAYS)
def test_every_way_learns_the_classes_and_comes_out_again(known, way):
    test_y = known.sealed._labels
    block = known.layout.block(known.task.test_X, 2)
    epochs = 25 if way.decay is None else 150  # an average lags behind
    first, again = (ask(train(known, 2, way, epochs, 0), block) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first.argmax(axis=1) == test_y) > 0.6


def test_an_average_that_forgets_at_once_is_the_last_head(known):
    """But for the update after which no average was taken."""
    block = known.layout.block(known.task.test_X, 1)
    plain = ask(train(known, 1, Way(), 4, 0), block)
    forgets = ask(train(known, 1, Way(decay=0.0), 4, 0), block)
    remembers = ask(train(known, 1, Way(decay=0.95), 4, 0), block)
    assert np.abs(forgets - plain).max() < np.abs(remembers - plain).max()


def test_a_mixture_with_itself_alone_is_training_as_it_is(known, monkeypatch):
    class Whole:
        def beta(self, *_):
            return 1.0

    monkeypatch.setattr(ways_to_train.np.random, "default_rng", lambda _: Whole())
    block = known.layout.block(known.task.test_X, 0)
    # One batch: what mixup draws beside changes nothing before the end.
    mixed, plain = (ask(train(known, 0, w, 1, 0), block) for w in (Way(mixup=1), Way()))
    np.testing.assert_allclose(mixed, plain, rtol=0, atol=1e-6)


def test_a_cell_is_judged_by_each_rule(known, monkeypatch):
    few = _front_judge.Variant(front.LOCAL.rule, front.LOCAL.values[4::4])
    monkeypatch.setattr(ways_to_train, "VARIANTS", {"local": few})
    cell = ways_to_train.cell(known, "a", "mixup", 25, 0)
    assert len(cell["validation_accuracy_of_stages"]) == 4
    found = cell["variants"]["local"]
    assert found.keys() == {"plain", "validation_at_cuts", "test_at_cuts"}


def test_gains_are_taken_within_a_seed():
    def cell(way, seed, accuracies):
        found = {"validation_at_cuts": accuracies, "test_at_cuts": accuracies}
        variants = dict.fromkeys(ways_to_train.VARIANTS, found)
        return {"task": "a", "way": way, "seed": seed, "variants": variants}

    found = ways_to_train.summary(
        [
            cell(ways_to_train.PLAIN, 0, [0.7, 0.6, None]),
            cell(ways_to_train.PLAIN, 1, [0.8, 0.7, 0.6]),
            cell("mixup", 0, [0.8, 0.7, 0.5]),
            cell("mixup", 1, [0.8, 0.7, 0.9]),
            cell("mixup", 2, [0.1, 0.1, 0.1]),  # the other was not trained with it
        ]
    )["a"]["local"]
    assert found["mixup"]["seeds"] == [0, 1]
    assert found["mixup"]["test_gain"]["mean"] == pytest.approx(0.1)
    assert found[ways_to_train.PLAIN]["validation_gain"]["mean"] == 0


def test_where_no_saving_is_reached_there_is_no_gain():
    assert np.isnan(ways_to_train.mean_of_reached(np.array([np.nan, np.nan])))
    assert ways_to_train.mean_of_reached(np.array([np.nan, 2.0, 4.0])) == 3
