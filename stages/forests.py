r"""Random forests as flat arrays: AnonymousNet's stage I, a forest per facial attribute on deep features [1]_ [2]_.

scikit-learn grows them, ``compile_forests`` turns them into five arrays, and NumPy alone evaluates those. Of a forest f
with trees 1 … T the probability of its attribute is the mean of what the leaves say:

.. math:: P_f(x) = \frac{1}{T} \sum_{t=1}^{T} \mathrm{leaf}_t(x)

Nodes of a tree lie breadth first, so the r-th split of a tree has its children at 1 + 2r and 2 + 2r and no pointer is
stored: 8 bytes per leaf. Features are rounded to float16 in fitting and predicting alike; then a threshold rounded down
to float16 splits exactly as scikit-learn's double does, and only the leaves' float16 (at most 2.5e-4) is lost.

.. [1] T. Li, L. Lin, "AnonymousNet: natural face de-identification with measurable privacy", CVPR Workshops 2019,
   sections 4 and 5.
.. [2] L. Breiman, "Random forests", Machine Learning 45(1), 2001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facecrowd.stages.models import ModelError

Kind = Literal["per-attribute", "multi-output"]

TREES, DEPTH, LEAVES = 140, 8, 64
"""Forty forests of this size take 2.6 MB. Many small trees are worth more here than few large ones."""

LEAF = -1
"""In place of a feature: the node splits nothing."""

FACES_AT_ONCE = 64

LARGEST = float(np.finfo(np.float16).max)


class ForestError(ModelError):
    """Features, labels or stored arrays that are no forest's."""


class _Walk(NamedTuple):
    """The same nodes as evaluation wants them; a leaf is its own left child and never sends a face to the right."""

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    leaf: NDArray[np.int32]
    roots: NDArray[np.int32]
    values: NDArray[np.float32]
    steps: int


@dataclass(frozen=True, eq=False)
class Forests:
    """F forests of T trees in all, each tree saying W values: one attribute each (W = 1), or one for all (F = 1).

    feature   : (M,) int16, the feature that each node splits, ``LEAF`` in leaves
    threshold : (splits,) float16, of each split in order; a face goes left where its feature is at most this
    leaf      : (leaves, W) float16 in [0, 1], of each leaf in order
    nodes     : (T,) int32, nodes of each tree
    trees     : (F,) int32, trees of each forest
    width     : () int32, the features D that a face must have
    """

    feature: NDArray[np.int16]
    threshold: NDArray[np.float16]
    leaf: NDArray[np.float16]
    nodes: NDArray[np.int32]
    trees: NDArray[np.int32]
    width: NDArray[np.int32]

    @property
    def attributes(self) -> int:
        """How many probabilities a face gets, A = F W."""
        return len(self.trees) * self.leaf.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(tensor.nbytes for tensor in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """The arrays by name, as safetensors stores them."""
        return {field.name: torch.from_numpy(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor]) -> Forests:
        """Forests from their ``state``, checked so that evaluating them stays within their arrays.

        Raises ForestError when an array is missing or they are no forests.
        """
        missing = [field.name for field in fields(cls) if field.name not in state]
        if missing:
            raise ForestError(f"the weights hold no array {missing[0]!r}, so they are no random forests")
        found = cls(**{field.name: state[field.name].numpy(force=True) for field in fields(cls)})
        if (wrong := _wrong(found)) is not None:
            raise ForestError(f"the weights are no random forests: {wrong}")
        return found

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """The probabilities of every attribute, (N, D) float32 → (N, A) float32 in [0, 1].

        Raises ForestError when features have another width or are not finite.
        """
        faces = rounded(features)
        if faces.shape[1] != self.width:
            raise ForestError(f"faces have {faces.shape[1]} features and the forests were fitted on {self.width}")
        walk, first = self._walk, np.cumsum(self.trees) - self.trees
        out = np.empty((len(faces), self.attributes), np.float32)
        for start in range(0, len(faces), FACES_AT_ONCE):
            block = np.ascontiguousarray(faces[start : start + FACES_AT_ONCE])
            row = (np.arange(len(block), dtype=np.int32) * block.shape[1])[:, None]
            node = np.repeat(walk.roots[None], len(block), axis=0)
            for _ in range(walk.steps):
                right = block.ravel()[walk.feature[node] + row] > walk.threshold[node]
                node = walk.left[node] + right
            said = walk.values[walk.leaf[node]]
            mean = np.add.reduceat(said, first, axis=1) / self.trees[:, None].astype(np.float32)
            out[start : start + len(block)] = mean.reshape(len(block), -1)
        return out

    @cached_property
    def _walk(self) -> _Walk:
        split = self.feature != LEAF
        roots = np.cumsum(self.nodes) - self.nodes
        tree_root = np.repeat(roots, self.nodes)
        rank = np.cumsum(split) - split
        left = np.where(split, tree_root + 1 + 2 * (rank - rank[tree_root]), np.arange(len(split)))
        threshold = np.full(len(split), np.inf, np.float32)
        threshold[split] = self.threshold
        steps, front = -1, roots
        while len(front):
            steps, front = steps + 1, front[split[front]]
            front = np.concatenate([left[front], left[front] + 1])
        return _Walk(
            feature=np.where(split, self.feature, 0).astype(np.int32),
            threshold=threshold,
            left=left.astype(np.int32),
            leaf=np.where(split, 0, np.cumsum(~split) - 1).astype(np.int32),
            roots=roots.astype(np.int32),
            values=self.leaf.astype(np.float32),
            steps=steps,
        )


def rounded(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, D) features as the forests see them: float32 numbers that float16 can hold.

    Raises ForestError when they are not finite or no (N, D) array.
    """
    faces = np.asarray(features, dtype=np.float32)
    if faces.ndim != 2 or not np.isfinite(faces).all():
        raise ForestError(f"features of shape {faces.shape} are not a finite (N, D) array")
    return np.clip(faces, -LARGEST, LARGEST).astype(np.float16).astype(np.float32)


def fit_forests(
    features: NDArray[np.floating],
    labels: NDArray[Any],
    kind: Kind = "per-attribute",
    trees: int = TREES,
    depth: int | None = DEPTH,
    leaves: int | None = LEAVES,
    seed: int = 0,
    jobs: int = 1,
) -> Forests:
    """Grow forests with scikit-learn and compile them. The same arguments give the same arrays, whatever ``jobs``.

    features : (N, D); labels : (N, A) of 0 and 1; trees : of each forest; depth, leaves : the most a tree may have;
    jobs : threads

    Raises ForestError when features or labels are not of these shapes and values.
    """
    return compile_forests(grow_forests(features, labels, kind, trees, depth, leaves, seed, jobs))


def grow_forests(
    features: NDArray[np.floating],
    labels: NDArray[Any],
    kind: Kind,
    trees: int,
    depth: int | None,
    leaves: int | None,
    seed: int,
    jobs: int = 1,
) -> list[Any]:
    """scikit-learn's forests, one per attribute or one for all. Arguments and errors as in ``fit_forests``."""
    from sklearn.ensemble import RandomForestClassifier  # slow to import, and only training needs it

    faces, truth = rounded(features), np.asarray(labels)
    if truth.ndim != 2 or len(truth) != len(faces) or not len(truth) or not np.isin(truth, (0, 1)).all():
        raise ForestError(f"labels of shape {truth.shape} for {len(faces)} faces are not (N, A) of 0 and 1")
    targets = [truth] if kind == "multi-output" else list(truth.T)
    return [
        RandomForestClassifier(
            n_estimators=trees,
            max_depth=depth,
            max_leaf_nodes=leaves,
            random_state=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
            n_jobs=jobs,
        ).fit(faces, target.astype(np.int8))
        for number, target in enumerate(targets)
    ]


def compile_forests(forests: Sequence[Any]) -> Forests:
    """The arrays of fitted ``RandomForestClassifier``s of labels 0 and 1 that saw ``rounded`` features of one width."""
    feature, threshold, leaf, nodes = [], [], [], []
    for forest in forests:
        classes = forest.classes_ if forest.n_outputs_ > 1 else [forest.classes_]
        for estimator in forest.estimators_:
            tree = estimator.tree_
            order = _breadth_first(tree.children_left, tree.children_right)
            split = tree.children_left[order] >= 0
            feature.append(np.where(split, tree.feature[order], LEAF))
            threshold.append(_rounded_down(tree.threshold[order[split]]))
            leaf.append(_positive(tree.value[order[~split]], classes))
            nodes.append(len(order))
    return Forests(
        feature=np.concatenate(feature).astype(np.int16),
        threshold=np.concatenate(threshold),
        leaf=np.concatenate(leaf).astype(np.float16),
        nodes=np.array(nodes, np.int32),
        trees=np.array([len(forest.estimators_) for forest in forests], np.int32),
        width=np.array(forests[0].n_features_in_, np.int32),
    )


def _breadth_first(left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.intp]:
    """All nodes, level by level, children in the order of their parents."""
    levels = [np.zeros(1, np.intp)]
    while len(splits := levels[-1][left[levels[-1]] >= 0]):
        levels.append(np.stack([left[splits], right[splits]], axis=1).ravel())
    return np.concatenate(levels)


def _rounded_down(threshold: NDArray[np.float64]) -> NDArray[np.float16]:
    """The largest float16 that is not above: no float16 feature lies between the two."""
    near = np.clip(threshold, -LARGEST, LARGEST).astype(np.float16)
    return np.where(near > threshold, np.nextafter(near, np.float16(-np.inf)), near)


def _positive(value: NDArray[np.float64], classes: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """(nodes, W) probabilities of label 1; an attribute that all faces have, or none, has one class only."""
    columns = [
        value[:, w, list(known).index(1)] if 1 in known else 0 * value[:, w, 0] for w, known in enumerate(classes)
    ]
    return np.stack(columns, axis=1)


def _wrong(found: Forests) -> str | None:
    """What is not as ``Forests`` says; None when all is."""
    shapes = {"feature": 1, "threshold": 1, "leaf": 2, "nodes": 1, "trees": 1, "width": 0}
    for name, dimensions in shapes.items():
        array = getattr(found, name)
        kind = np.floating if name in ("threshold", "leaf") else np.integer
        if array.ndim != dimensions or not np.issubdtype(array.dtype, kind):
            return f"{name} is a {array.ndim}-dimensional array of {array.dtype}"
    split, sizes = found.feature != LEAF, found.nodes.astype(np.int64)
    if not len(sizes) or sizes.min() < 1 or sizes.sum() != len(split):
        return f"{len(split)} nodes where the trees have {sizes.sum()}"
    if not len(found.trees) or found.trees.min() < 1 or found.trees.sum() != len(sizes):
        return f"{len(sizes)} trees where the forests have {found.trees.sum()}"
    if found.feature.min() < LEAF or found.feature.max() >= found.width:
        return f"a split of a feature outside of {found.width}"
    if split.sum() != len(found.threshold) or (~split).sum() != len(found.leaf):
        return f"{len(found.threshold)} thresholds and {len(found.leaf)} leaves for {split.sum()} splits"
    roots = np.cumsum(sizes) - sizes
    if (np.add.reduceat(split, roots, dtype=np.int64) != (sizes - 1) / 2).any():
        return "a tree whose nodes are not twice its splits and one"
    # every node but the root follows its parent, so nothing walks in a circle
    rank = np.cumsum(split) - split
    own = np.arange(len(split)) - np.repeat(roots, sizes)
    if (1 + 2 * (rank - rank[np.repeat(roots, sizes)]) <= own)[split].any():
        return "a tree whose nodes are not in breadth-first order"
    if not np.isfinite(found.threshold).all() or not ((found.leaf >= 0) & (found.leaf <= 1)).all():
        return "a threshold that is no number or a leaf outside [0, 1]"
    return None
