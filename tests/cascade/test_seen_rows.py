import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from sk_calex.cascade._seen_rows import check_rows_are_new, digest_rows
from tests._fixed_cascade import fixed_cascade, rows
from tests.inspection._inspected import calexnet, data, sdn


def test_equal_rows_have_equal_digests_in_every_form():
    X = np.random.default_rng(0).random((5, 3, 4, 4)).astype(np.float32)
    digests = digest_rows(X)
    assert digests.dtype == np.uint64
    assert len(np.unique(digests)) == 5
    for same in (X[::-1][::-1], X.astype(np.float64), torch.from_numpy(X), list(X)):
        assert (digest_rows(same) == digests).all()
    assert (digest_rows(X[[3]]) == digests[3]).all()
    assert not np.isin(digest_rows(X + 1e-3), digests).any()


def test_half_precision_tensors_have_digests():
    X = torch.rand(3, 4)
    assert (digest_rows(X.bfloat16()) == digest_rows(X.bfloat16().float())).all()


def test_image_files_count_by_their_content(tmp_path):
    paths = []
    for i, shade in enumerate((10, 200, 10)):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(paths[-1])
    digests = digest_rows(paths)
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    "X", [TensorDataset(torch.zeros(3, 2)), np.array([["a"], ["b"]]), 1.0]
)
def test_what_cannot_be_read_again_has_no_digests(X):
    assert digest_rows(X) is None


@pytest.mark.parametrize("make", [calexnet, sdn])
def test_fit_keeps_the_digests_of_all_its_rows(make):
    given = data()
    assert (np.sort(make().row_digests_) == np.sort(digest_rows(given.X))).all()
    check_rows_are_new(make(), given.test, "It", "")
    with pytest.raises(ValueError, match="1 of 241 rows"):
        check_rows_are_new(make(), np.vstack([given.test, given.X[:1]]), "It", "")


def test_rows_without_digests_are_a_warning():
    with pytest.warns(UserWarning, match="whether X holds rows.*because this X was"):
        check_rows_are_new(fixed_cascade(), TensorDataset(torch.zeros(2, 2)), "It", "")
    old = fixed_cascade()
    old.row_digests_ = None
    with pytest.warns(UserWarning, match="because that X was"):
        check_rows_are_new(old, rows(3)[0], "It", "")
