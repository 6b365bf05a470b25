"""Claims of stages/deepfool.py: the least step over the boundary, per picture, as outside implementations find it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from facecrowd.stages.deepfool import decide, deepfool

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of ten kinds: (count, 3, 16, 16) in [0, 1], and which kind each is."""
    kinds = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(5)), 16)
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (count,), generator=draws)
    return 0.4 * kinds[y] + 0.6 * torch.rand(count, 3, 16, 16, generator=draws), y


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small classifier of ``pictures`` whose boundaries are far from flat."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 2), (16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Tanh() if inputs < 32 else nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(100):
        x, y = pictures(64, step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def flat() -> tuple[Tensor, Tensor]:
    """Weights (6, 12) and biases (6,) of a model with flat boundaries."""
    draws = torch.Generator().manual_seed(3)
    return torch.randn(6, 12, generator=draws), torch.randn(6, generator=draws)


def lengths(moved: Tensor, x: Tensor) -> Tensor:
    return (moved - x).flatten(1).norm(dim=1)


def test_success_norm_and_speed_are_at_least_foolboxs(network):
    foolbox = pytest.importorskip("foolbox")
    x, _ = pictures(48, 1000)
    own = network(x).argmax(dim=1)
    theirs = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(3):
        start = time.process_time()
        found = deepfool(network, x, candidates=10, overshoot=0.02, max_iter=50)
        middle = time.process_time()
        expected, _, success = attack(theirs, x, own, epsilons=None)
        times["ours"].append(middle - start)
        times["theirs"].append(time.process_time() - middle)
    assert found.success.tolist() == success.tolist()
    assert found.success.all()
    assert (network(found.x).argmax(dim=1) != own).all()
    assert float(lengths(found.x, x).mean()) == pytest.approx(float(lengths(expected, x).mean()), rel=0.05)
    assert min(times["ours"]) <= min(times["theirs"])


def test_of_a_flat_model_the_step_is_the_distance_to_the_nearest_boundary(flat):
    weight, bias = flat
    x = torch.rand(40, 12, generator=torch.Generator().manual_seed(4))
    scores = x @ weight.T + bias
    y = scores.argmax(dim=1)
    gaps = (scores.gather(1, y[:, None]) - scores) / (weight[y][:, None] - weight).norm(dim=2)
    nearest = gaps.scatter(1, y[:, None], torch.inf).min(dim=1).values
    found = deepfool(lambda z: z @ weight.T + bias, x, overshoot=0.02, clamp=False)
    assert found.success.all()
    assert (found.steps == 1).all()
    torch.testing.assert_close(lengths(found.x, x), 1.02 * (nearest + 1e-4), rtol=1e-3, atol=1e-5)


def test_on_labels_the_one_nearest_to_its_flip_flips_and_no_other(flat):
    weight, bias = flat
    x = torch.rand(40, 12, generator=torch.Generator().manual_seed(4))
    scores = x @ weight.T + bias
    found = deepfool(lambda z: z @ weight.T + bias, x, kind="labels", clamp=False)
    distances = scores.abs() / weight.norm(dim=1)
    torch.testing.assert_close(lengths(found.x, x), 1.02 * (distances.min(dim=1).values + 1e-4), rtol=1e-3, atol=1e-5)
    flipped = decide(scores, "labels") != decide(found.x @ weight.T + bias, "labels")
    nearest = distances.argmin(dim=1)
    assert flipped[torch.arange(40), nearest].all()
    # A step may cross a second boundary that lies just behind the first; most do not.
    assert flipped.sum() < 1.2 * 40


def test_every_picture_stops_on_its_own(network):
    x, _ = pictures(12, 1001)
    together = deepfool(network, x)
    assert len(together.steps.unique()) > 1
    for i in range(len(x)):
        alone = deepfool(network, x[i : i + 1])
        assert alone.steps == together.steps[i]
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-4)


def test_a_picture_that_stopped_costs_no_more_passes(network):
    x, _ = pictures(12, 1001)
    seen = []

    def counted(z: Tensor) -> Tensor:
        seen.append(len(z))
        return network(z)

    found = deepfool(counted, x)
    # One pass at the start, one to look at every step, and one more for those that others left behind.
    assert sum(seen) <= len(x) + 2 * int(found.steps.sum())
    assert seen[-1] < len(x)


def test_a_picture_that_is_decided_otherwise_already_stays(network):
    x, _ = pictures(6, 1002)
    decided = network(x).argmax(dim=1, keepdim=True)
    decided[:3] = (decided[:3] + 1) % 10
    found = deepfool(network, x, decided=decided)
    assert found.success.all()
    assert found.steps[:3].tolist() == [0, 0, 0]
    assert torch.equal(found.x[:3], x[:3])
    assert (found.steps[3:] > 0).all()


def test_pictures_stay_in_range_where_asked(flat):
    weight, bias = flat
    x = torch.rand(40, 12, generator=torch.Generator().manual_seed(4)).round()
    inside, outside = (deepfool(lambda z: z @ weight.T + bias, x, clamp=clamp) for clamp in (True, False))
    assert inside.x.min() >= 0
    assert inside.x.max() <= 1
    assert outside.x.min() < 0


def test_only_the_candidates_cost_backward_passes(flat):
    weight, bias = flat
    x = torch.rand(5, 12)
    for kind, candidates, passes in (("classes", 3, 2), ("classes", 99, 5), ("labels", 3, 3), ("labels", 99, 6)):
        count = []

        def scores(z: Tensor, count: list[int] = count) -> Tensor:
            out = z @ weight.T + bias
            if out.requires_grad:
                out.register_hook(lambda g: count.append(1))
            return out

        deepfool(scores, x, kind=kind, candidates=candidates, max_iter=1)
        assert len(count) == passes


def test_what_cannot_be_fooled_in_time_is_no_success(network):
    x, _ = pictures(4, 1003)
    found = deepfool(network, x, max_iter=0)
    assert not found.success.any()
    assert torch.equal(found.x, x)
    with pytest.raises(ValueError, match="no other to decide for"):
        deepfool(lambda z: z.flatten(1)[:, :1], x)
    with pytest.raises(ValueError, match="two candidates"):
        deepfool(network, x, candidates=1)
