"""Claims of stages/networks/stargan.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from facecrowd.stages.models import ModelError
from facecrowd.stages.networks import stargan
from facecrowd.stages.networks.stargan import Discriminator, Generator, Shape
from facecrowd.stages.places import place

SMALL = Shape(("Male", "Young"), width=8, side=32)


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_at_the_papers_size_the_generator_has_the_8_4_million_weights_of_stargan() -> None:
    assert weights(Generator(Shape(("a", "b", "c", "d", "e"), residual=False))) == pytest.approx(8.4e6, rel=0.01)


def test_the_papers_discriminator_looks_at_patches_and_names_attributes() -> None:
    patches, classes = Discriminator(5)(torch.zeros(2, 3, 128, 128))
    assert patches.shape == (2, 1, 2, 2)
    assert classes.shape == (2, 5)


def test_a_residual_generator_begins_as_the_identity_whatever_is_asked() -> None:
    x = torch.rand(2, 3, 48, 48)
    made = Generator(SMALL).translate(x, torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
    assert torch.allclose(made, x, atol=1e-6)


def test_a_larger_picture_gets_the_change_made_at_the_trained_size_and_keeps_its_detail() -> None:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    nn.init.normal_(generator.end[-1].weight, std=1e-3)
    small = torch.rand(1, 3, 32, 32) * 0.2 + 0.4
    large = F.interpolate(small, (128, 128), mode="nearest")
    generator.requires_grad_(False)
    c = torch.ones(1, 2)
    change, at_size = generator.translate(large, c) - large, generator.translate(small, c) - small
    assert change.abs().max() > 1e-3
    assert torch.allclose(F.interpolate(change, (32, 32), mode="area"), at_size, atol=0.01)


def test_a_change_stays_where_its_attribute_lies_to_the_bit() -> None:
    torch.manual_seed(0)
    generator = Generator(Shape(("Big_Nose", "Big_Lips"), width=8, side=32)).requires_grad_(False)
    nn.init.normal_(generator.end[-1].weight, std=1e-2)
    x = torch.rand(1, 3, 32, 32)
    made = generator(x, torch.tensor([[1.0, 0.0]]))
    elsewhere = torch.from_numpy(place("Big_Nose", 32)) == 0
    assert torch.equal(made[..., elsewhere], x[..., elsewhere])
    assert not torch.equal(made, x)


def test_differences_say_only_what_changes_and_targets_say_what_is_there() -> None:
    before, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert Generator(SMALL).condition(before, after).tolist() == [[-1.0, 0.0]]
    papers = Generator(Shape(("Male", "Young"), 8, 32, encoding="target", residual=False))
    assert papers.condition(before, after).tolist() == [[0.0, 0.0]]


def test_the_gradient_penalty_of_a_plane_of_slope_three_is_four() -> None:
    class Plane(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            direction = torch.ones_like(x[0]) / x[0].numel() ** 0.5
            return 3 * (x * direction).flatten(1).sum(dim=1, keepdim=True), x

    x = torch.rand(4, 3, 8, 8)
    found = stargan.gradient_penalty(Plane(), x, 1 - x, torch.rand(4, 1, 1, 1))
    assert float(found) == pytest.approx((3 - 1) ** 2, rel=1e-4)


def test_the_identity_loss_is_nought_for_the_same_features_and_counts_layers_alike() -> None:
    one, other = [torch.ones(2, 3, 4, 4), torch.ones(2, 5)], [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)]
    assert float(stargan.identity(one, one)) == 0
    assert float(stargan.identity(one, other)) == pytest.approx(2)


def test_augmentation_moves_and_cuts_and_passes_gradients_on() -> None:
    x = torch.ones(3, 3, 40, 40, requires_grad=True)
    seen = stargan.augment(x, torch.Generator().manual_seed(1))
    assert seen.shape == x.shape
    assert 0 < float((seen == 0).float().mean()) < 0.5
    (slope,) = torch.autograd.grad(seen.sum(), x)
    assert float(slope.abs().sum()) > 0


def test_weights_come_back_from_a_file_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    made = Generator(SMALL, {"preset": "smoke"})
    file = tmp_path / "t.safetensors"
    save_file(made.state_dict(), str(file), metadata=made.metadata())
    found = Generator.load(file)
    assert found.shape == SMALL
    assert found.about == {"preset": "smoke"}


def test_a_file_of_anything_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_file({"x": torch.zeros(1)}, str(file))
    with pytest.raises(ModelError, match="no attribute translator"):
        Generator.load(file)
