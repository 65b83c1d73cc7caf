"""What pictures share: labels that fit and stay different."""

import pytest

from sk_calex.inspection._plot._style import short_labels


def test_labels_that_fit_stay_whole():
    assert short_labels(["cat", 7, "x" * 18]) == ["cat", "7", "x" * 18]


def test_long_labels_lose_their_end():
    assert short_labels(["large_omnivores_and_herbivores"], 16) == ["large_omnivores…"]


@pytest.mark.parametrize("length", [6, 12, 18])
def test_labels_that_differ_at_their_end_stay_different(length):
    names = [f"a_class_with_a_long_name_{i}" for i in range(12)]
    short = short_labels(names, length)
    assert len(set(short)) == 12
    assert max(map(len, short)) == length
    assert short[3].endswith("_3") or short[3].endswith("…3")


def test_only_labels_that_would_be_alike_lose_their_middle():
    names = ["household_furniture", "household_fur_coats", "people_of_the_whole_world"]
    short = short_labels(names, 12)
    assert short == ["household_…e", "household_…s", "people_of_t…"]


def test_equal_labels_stay_equal():
    assert len(set(short_labels(["a" * 30, "a" * 30], 5))) == 1
