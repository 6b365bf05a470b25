"""Claims of stages/forests.py: compiled forests say what scikit-learn's say, fit the package, and are fast."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.ensemble import RandomForestClassifier

from facecrowd.stages.forests import (
    LEAVES,
    TREES,
    ForestError,
    Forests,
    compile_forests,
    fit_forests,
    grow_forests,
    rounded,
)

FACES, WIDTH, ATTRIBUTES = 600, 32, 5


def problem(faces: int = FACES, width: int = WIDTH, attributes: int = ATTRIBUTES) -> tuple[np.ndarray, np.ndarray]:
    """Features on the scale of activations, and labels that depend on them with noise."""
    rng = np.random.default_rng(11)
    features = (rng.standard_normal((faces, width)) * rng.gamma(1, 3, width)).astype(np.float32)
    score = features @ rng.standard_normal((width, attributes)) / np.linalg.norm(features, axis=1).mean()
    return features, score + rng.standard_normal((faces, attributes)) > rng.normal(0, 1, attributes)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return problem()


def said_by_scikit_learn(forests: list[Any], features: np.ndarray) -> np.ndarray:
    """(N, A) of ``predict_proba``'s class 1."""
    found = [forest.predict_proba(features) for forest in forests]
    if isinstance(found[0], list):
        found = found[0]
    return np.stack([p[:, 1] for p in found], axis=1)


@pytest.mark.parametrize("kind", ["per-attribute", "multi-output"])
def test_compiled_forests_say_what_scikit_learns_say(data, kind):
    features, labels = data
    fitted = grow_forests(features[:400], labels[:400], kind, 20, None, None, 3)
    unseen = features[400:] * 1.01
    expected = said_by_scikit_learn(fitted, rounded(unseen))
    found = compile_forests(fitted).predict(unseen)
    assert found.dtype == np.float32
    assert found.shape == (200, ATTRIBUTES)
    np.testing.assert_allclose(found, expected, atol=2.5e-4)


def test_a_forest_grown_by_scikit_learn_alone_compiles_to_the_same_answers(data):
    features, labels = data
    forest = RandomForestClassifier(30, max_depth=7, random_state=5).fit(rounded(features), labels[:, 0])
    found = compile_forests([forest]).predict(features)[:, 0]
    np.testing.assert_allclose(found, forest.predict_proba(rounded(features))[:, 1], atol=2.5e-4)


def test_neighbouring_float16_features_are_told_apart_as_scikit_learn_does():
    values = (1 + np.arange(8) / 1024).astype(np.float32)[:, None]
    assert (rounded(values) == values).all()
    forest = RandomForestClassifier(8, bootstrap=False, random_state=0).fit(values, [0, 1] * 4)
    found = compile_forests([forest]).predict(values)[:, 0]
    np.testing.assert_array_equal(found, forest.predict_proba(values)[:, 1])
    assert found.tolist() == [0, 1] * 4


def test_the_paper_has_no_class_weights_and_neither_have_these(data):
    assert grow_forests(*data, "multi-output", 2, 3, None, 0)[0].class_weight is None


def test_an_attribute_that_everybody_has_or_nobody_has_is_certain(data):
    features, labels = data
    labels = labels.copy()
    labels[:, 1], labels[:, 2] = True, False
    for kind in ("per-attribute", "multi-output"):
        found = fit_forests(features, labels, kind, trees=3, depth=4)
        said = found.predict(features)
        assert (said[:, 1] == 1).all()
        assert (said[:, 2] == 0).all()


@pytest.mark.parametrize("kind", ["per-attribute", "multi-output"])
def test_the_same_seed_gives_the_same_arrays_on_any_number_of_threads_and_another_seed_others(data, kind):
    once, again, other = (
        fit_forests(*data, kind, trees=5, seed=seed, jobs=jobs) for seed, jobs in ((1, 1), (1, 2), (2, 1))
    )
    for name, array in once.state().items():
        np.testing.assert_array_equal(array, again.state()[name])
    assert not np.array_equal(once.threshold, other.threshold)


def test_faces_are_answered_alike_alone_and_together(data):
    found = fit_forests(*data, trees=4)
    together = found.predict(data[0])
    np.testing.assert_array_equal(together[100:101], found.predict(data[0][100:101]))
    assert found.predict(data[0][:0]).shape == (0, ATTRIBUTES)


def test_depth_and_leaves_are_limits_of_every_tree(data):
    found = fit_forests(*data, trees=4, depth=6, leaves=9)
    assert found.nodes.max() <= 2 * 9 - 1
    assert fit_forests(*data, trees=4, depth=2, leaves=None).nodes.max() <= 7


def test_forty_forests_of_the_default_size_cannot_take_more_than_three_megabytes(data):
    """8 bytes per leaf, whatever the data: checked on full trees."""
    features, labels = data
    found = fit_forests(features, labels, trees=10, depth=None, leaves=32)
    assert (found.nodes == 63).all()
    per_leaf = found.nbytes / len(found.leaf)
    assert per_leaf < 8.2
    assert 40 * TREES * LEAVES * per_leaf < 3e6


def test_forests_survive_safetensors(data, tmp_path: Path):
    for kind in ("per-attribute", "multi-output"):
        found = fit_forests(*data, kind, trees=4)
        save_file(found.state(), tmp_path / "forests.safetensors")
        again = Forests.restore(load_file(tmp_path / "forests.safetensors"))
        np.testing.assert_array_equal(again.predict(data[0]), found.predict(data[0]))
        assert again.nbytes == found.nbytes
        assert again.attributes == ATTRIBUTES


BREAKS = {
    "more trees than there are": lambda state: state["trees"].add_(1),
    "trees that end within each other": lambda state: state["nodes"][:2].add_(torch.tensor([2, -2])),
    "a feature that no face has": lambda state: state["feature"][:1].fill_(WIDTH),
    "a leaf that says nothing": lambda state: state["leaf"][:1].fill_(float("nan")),
    "children before their parents": lambda state: state["feature"].copy_(state["feature"].sort().values),
    "fewer leaves than there are": lambda state: state.update(leaf=state["leaf"][1:]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_arrays_that_would_lead_a_walk_astray_are_refused(data, name):
    tensors = fit_forests(*data, trees=2).state()
    BREAKS[name](tensors)
    with pytest.raises(ForestError, match="no random forests"):
        Forests.restore(tensors)


def test_a_missing_array_is_named(data):
    tensors = fit_forests(*data, trees=1).state()
    del tensors["leaf"]
    with pytest.raises(ForestError, match="no array 'leaf'"):
        Forests.restore(tensors)


def test_features_of_another_width_or_not_finite_and_labels_that_are_no_labels_are_refused(data):
    features, labels = data
    found = fit_forests(features, labels, trees=1, depth=2)
    with pytest.raises(ForestError, match=r"31 features .* fitted on 32"):
        found.predict(features[:, 1:])
    with pytest.raises(ForestError, match="not a finite"):
        found.predict(features * np.nan)
    with pytest.raises(ForestError, match="of 0 and 1"):
        fit_forests(features, labels * 2)
    with pytest.raises(ForestError, match="of 0 and 1"):
        fit_forests(features, labels[1:])


@pytest.mark.slow
def test_forty_forests_answer_for_a_thousand_faces_in_a_second_on_one_core():
    """Four fitted forests, in memory ten times."""
    features, labels = problem(2000, 1024, 4)
    four = fit_forests(features, labels)
    forty = replace(
        four,
        **{
            name: np.concatenate([getattr(four, name)] * 10)
            for name in ("feature", "threshold", "leaf", "nodes", "trees")
        },
    )
    assert forty.attributes == 40
    assert forty.nbytes < 3e6
    forty.predict(features[:64])
    start = time.process_time()
    forty.predict(features)
    assert len(features) / (time.process_time() - start) > 1000
