"""Whether photos show one person or two, by features of identity."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from torch import Tensor


def two_groups(vectors: Tensor) -> tuple[list[int], float]:
    """Split photos into the two groups that are least alike: those that average linkage joins last.

    Args:
        vectors: [N, D], unit vectors of an identity network, N >= 2.

    Returns:
        The smaller group, in order, and the mean cosine between both groups.
    """
    cosines = (vectors @ vectors.T).double().cpu().numpy()
    apart = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average")
    second = cut_tree(tree, n_clusters=2)[:, 0].astype(bool)
    smaller = second if 2 * second.sum() <= len(second) else ~second
    return np.flatnonzero(smaller).tolist(), float(cosines[smaller][:, ~smaller].mean())
