import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.anonymity import ClassSizes
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import PopulationError
from facecrowd.privacy.uniqueness import pitman, shlosser, snb, uniqueness, zayatz

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def class_sizes_of(members):
    members = np.asarray(members)
    size, classes = np.unique(members[members > 0], return_counts=True)
    return ClassSizes(size, classes, size * classes)


@given(SIZES, st.integers(1, 40))
def test_estimates_stay_between_nobody_and_everybody(members, times):
    sizes, n = class_sizes_of(members), sum(members)
    for model in (zayatz, snb, pitman):
        estimate = model(sizes, n * times)
        assert math.isnan(estimate) or -1e-9 <= estimate <= n * times * (1 + 1e-9)
    assert shlosser(sizes, n * times) >= len(members) - 1e-9


@given(SIZES)
def test_the_whole_population_is_its_own_estimate(members):
    sizes = class_sizes_of(members)
    for model in (zayatz, snb, pitman):
        assert model(sizes, sum(members)) == pytest.approx(members.count(1))
    assert shlosser(sizes, sum(members)) == len(members)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=40), st.integers(1, 40))
def test_nobody_alone_in_the_table_is_nobody_alone_in_the_population(members, times):
    found = uniqueness(histogram(np.arange(sum(members)), class_ids=np.repeat(range(len(members)), members)), 10**6)
    assert (found.uniques, found.population_share) == (0, 0)


def test_zayatz_weighs_by_the_chance_to_be_drawn_alone():
    # N = 6, n = 3, one class of 1 and one of 2: counted over all draws of three from six
    alone = {i: sum(len(set(d) & set(range(i))) == 1 for d in combinations(range(6), 3)) / 20 for i in (1, 2)}
    expected = 1 / (3 / 6) * alone[1] / (alone[1] + alone[2])
    assert zayatz(class_sizes_of([1, 2]), 6) == pytest.approx(expected)


@pytest.mark.parametrize("alpha,beta,share", [(0.5, 0.05, 0.3), (0.3, 0.02, 0.5), (1.0, 0.3, 0.7)])
def test_the_negative_binomial_finds_the_uniques_of_a_population_it_describes(alpha, beta, share):
    rng = np.random.default_rng(5)
    population = 1 + rng.negative_binomial(alpha, beta, 40_000)
    drawn = class_sizes_of(rng.binomial(population, share))
    assert snb(drawn, int(population.sum())) == pytest.approx((population == 1).sum(), rel=0.06)
    assert shlosser(drawn, int(population.sum())) == pytest.approx(40_000, rel=0.06)


@pytest.mark.parametrize("alpha,theta", [(0.5, 20.0), (0.7, 5.0)])
def test_pitman_finds_the_uniques_of_a_population_it_describes(alpha, theta):
    rng = np.random.default_rng(5)
    joined, sizes = np.zeros(30_000, dtype=int), []
    coins = rng.random(30_000)
    for i, coin in enumerate(coins):  # the process itself, one member at a time
        if coin * (theta + i) < theta + len(sizes) * alpha:
            joined[i] = len(sizes)
            sizes.append(1)
        else:
            # a member of the past, of whose class (size - alpha) / size of the mass is left
            while True:
                friend = joined[rng.integers(i)]
                if rng.random() * sizes[friend] < sizes[friend] - alpha:
                    break
            joined[i] = friend
            sizes[friend] += 1
    sample = class_sizes_of(np.bincount(joined[rng.permutation(30_000)[:3_000]]))
    assert pitman(sample, 30_000) == pytest.approx((np.array(sizes) == 1).sum(), rel=0.12)


def test_pitmans_estimate_is_its_likelihoods_maximum_on_a_grid():
    members = [1] * 14 + [2] * 4 + [3, 4, 7, 11]
    n, u = sum(members), len(members)

    def likelihood(alpha, theta):
        founded = sum(math.log(theta + i * alpha) for i in range(1, u))
        joined = sum(math.log(j - alpha) for size in members for j in range(1, size))
        return founded + joined - sum(math.log(theta + i) for i in range(1, n))

    grid = [(alpha, theta) for alpha in np.linspace(0.01, 0.99, 99) for theta in np.linspace(-alpha + 0.01, 30, 200)]
    alpha, theta = max(grid, key=lambda at: likelihood(*at))
    assert 0.01 < alpha < 0.99
    assert theta < 30
    alone = math.prod((theta + alpha + i - 1) / (theta + i) for i in range(1, 10 * n))  # nobody ever joined
    assert pitman(class_sizes_of(members), 10 * n) == pytest.approx(10 * n * alone, rel=0.03)


@pytest.mark.parametrize("population", [150, 300, 2_000])
def test_the_rule_takes_pitman_for_small_samples_and_else_the_smaller_of_the_others(population):
    classes = [1] * 40 + [2] * 12 + [3] * 5 + [7, 14]
    found = uniqueness(
        histogram(np.arange(sum(classes)), class_ids=np.repeat(range(len(classes)), classes)), population
    )
    smaller = min(("zayatz", "snb"), key=found.estimates.__getitem__)
    assert found.model == ("pitman" if population > 10 * sum(classes) else smaller)
    assert found.population_share == found.estimates[found.model] / population


def test_a_model_without_a_solution_leaves_zayatz():
    found = uniqueness(histogram(np.arange(11), class_ids=[0, 1, 2, 3, 4] + [5] * 6), 20)  # no class of two
    assert math.isnan(found.estimates["snb"])
    assert found.model == "zayatz"
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["estimates"]["snb"] is None


def test_people_are_counted_and_rows_only_when_asked():
    found = histogram(["ann"] * 3 + ["bob"], class_ids=[0, 0, 0, 1])
    assert uniqueness(found).sample_share == 1
    assert uniqueness(found, unit="rows").sample_share == 0.25
    assert uniqueness(found).population_share is None


def test_a_population_smaller_than_its_sample_is_refused():
    for model in (zayatz, snb, pitman, shlosser):
        with pytest.raises(PopulationError, match="the population has 2 members and the table 3"):
            model(class_sizes_of([1, 2]), 2)
    with pytest.raises(PopulationError):
        uniqueness(histogram([1, 2], class_ids=[0, 1]), 1)
