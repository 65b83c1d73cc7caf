"""The upper limit of every exit rule, computed from the labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import as_table, check_class_codes

__all__ = ["Oracle"]


class Oracle:
    """Exit at the first stage that is right, which needs the labels.

    It marks what exits could reach with these branches, and cannot be given to a
    cascade. Samples that no stage gets right exit at the first branch: going on would
    not help them.

    Notes
    -----
    Our definition.

    Examples
    --------
    >>> from sk_calex.policies import Oracle
    >>> proba = [[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]]
    >>> Oracle().depth(proba, [0, 1])
    array([0, 1])
    """

    def depth(self, answers: StageTable | ArrayLike, y: ArrayLike) -> NDArray[np.intp]:
        """Compute where each sample would exit at best.

        Parameters
        ----------
        answers : StageTable or array-like of shape (n_stages, n_samples, n_classes)
            Probabilities of the branches and the last stage.
        y : array-like of int, shape (n_samples,)
            True class codes.

        Returns
        -------
        depth : ndarray of intp, shape (n_samples,)
            Index of the first stage that is right; 0 where none is.

        Raises
        ------
        ValueError
            If a shape does not fit or a code is out of range.
        """
        table = as_table(answers)
        right = table.predicted == check_class_codes(y, table)
        return right.argmax(axis=0)
