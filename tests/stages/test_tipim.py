"""TIP-IM: a face is taken for a target, inside the ball to the last grey level, the same however it was computed."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from facecrowd.stages import recognise
from facecrowd.stages.align import Align
from facecrowd.stages.decode import decode
from facecrowd.stages.detect import Detect
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.mobilestylegan import MobileStyleGAN
from facecrowd.stages.quality import psnr, ssim
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch
from facecrowd.stages.tipim import (
    VARIANCES,
    Mask,
    Masked,
    Masker,
    TipIm,
    embeddings,
    gain,
    generated_targets,
    jpeg,
    mmd,
    project,
    quantise,
    target_gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PEOPLE = Path(__file__).resolve().parents[2] / "jobs" / "faces"
KEY = RunKey(bytes(range(32)))
SIZE = 112
NORMS = ("linf", "l2")


class Tiny:
    """A recogniser of random weights: (N, 3, 112, 112) to unit vectors."""

    def __init__(self, seed: int = 0, width: int = 24) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Conv2d(3, 8, 7, 4),
                nn.PReLU(8),
                nn.Conv2d(8, 8, 5, 3),
                nn.PReLU(8),
                nn.Flatten(),
                nn.Linear(512, width),
            )
        self.network.requires_grad_(False)
        self.width = width

    def embed(self, faces: Tensor) -> Tensor:
        return F.normalize(self.network(faces - 0.5))


def crops(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Smooth pictures of nothing, with black and white in them: (count, size, size, 3) uint8."""
    draws = np.random.Generator(np.random.Philox(seed))
    small = draws.integers(-60, 315, (count, 8, 8, 3)).astype(np.float32)
    return (
        np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC) for one in small])
        .clip(0, 255)
        .astype(np.uint8)
    )


def planes(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def masker(how: Mask, surrogates: list[Tiny] | None = None, targets: int = 4, size: int = SIZE) -> Masker:
    surrogates = surrogates or [Tiny()]
    return Masker(surrogates, identities(surrogates, targets), how, size, "arcface" if size == SIZE else "ffhq")


def identities(surrogates: list[Tiny], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(99)
    return [F.normalize(torch.randn(count, s.width, generator=generator)) for s in surrogates]


def draws(count: int, key: RunKey = KEY) -> list[np.random.Generator]:
    return [key.generator("tip-im", str(i)) for i in range(count)]


def run(how: Mask, count: int = 3, key: RunKey = KEY, **options: object) -> tuple[Masker, Tensor, Masked]:
    made = masker(how, **options)  # type: ignore[arg-type]
    x = planes(crops(count, size=made.size))
    return made, x, made(x, draws(count, key))


def distance_to_nearest(made: Masker, pixels: Tensor) -> Tensor:
    assert made.targets is not None
    found = made.embed(pixels.float())
    return (found[:, None] - made.targets).square().sum(-1).amin(1)


def away(x: Tensor, y: Tensor) -> Tensor:
    return x.double() - y.double()


# --- the ball ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["G", "advnoise"])
@pytest.mark.parametrize("norm,epsilon", [("linf", 12.0), ("linf", 3.7), ("l2", 6.0), ("l2", 0.8)])
def test_no_released_pixel_leaves_the_ball(norm: str, epsilon: float, choice: str) -> None:
    how = Mask(epsilon=epsilon, norm=norm, alpha=epsilon / 3, steps=8, choice=choice)  # type: ignore[arg-type]
    _, x, masked = run(how)
    assert masked.pixels.dtype == torch.uint8
    changed = away(masked.pixels, x)
    assert changed.abs().amax() > 0
    if norm == "linf":
        assert changed.abs().amax() <= epsilon
        assert changed.abs().amax() == math.floor(epsilon)
    else:
        # Whole numbers, so that the sums are exact.
        squares = changed.square().flatten(1)
        assert (squares.sum(1) <= epsilon**2 * squares.shape[1]).all()
        assert (squares.mean(1) > 0.8 * epsilon**2).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("epsilon", [0.3, 0.5, 1.0, 5.5, 12.0])
def test_rounding_never_leaves_an_l2_ball_and_moves_no_value_by_a_grey_level(
    epsilon: float, layout: torch.memory_format
) -> None:
    real = planes(crops(3)).contiguous(memory_format=layout)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise *= epsilon / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    exact = (real + noise).clamp(0, 255)
    whole = quantise(exact, real, epsilon, "l2")
    assert ((whole.double() - exact).abs() < 1).all()
    squares = away(whole, real).square().flatten(1)
    assert (squares.sum(1) <= epsilon**2 * squares.shape[1]).all()
    if epsilon >= 5:
        assert (squares.mean(1).sqrt() > 0.95 * away(exact, real).square().flatten(1).mean(1).sqrt()).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_that_is_no_number_is_refused_instead_of_painted_black(norm: str) -> None:
    real = planes(crops(1))
    broken = real.double()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        quantise(broken, real, 3.0, norm)  # type: ignore[arg-type]


def test_a_point_well_inside_the_ball_is_only_rounded() -> None:
    real = planes(crops(2))
    exact = (real + torch.rand(real.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 255)
    for norm in NORMS:
        assert (quantise(exact, real, 12.0, norm) - exact.double()).abs().amax() <= 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", NORMS)
def test_each_face_is_projected_by_itself_and_one_inside_the_ball_stays(norm: str) -> None:
    real = planes(crops(3)).float()
    noise = (
        torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
        * torch.tensor([0.5, 8, 40])[:, None, None, None]
    )
    whole = project(real + noise, real, 6.0, norm)  # type: ignore[arg-type]
    alone = [project(real[i] + noise[i], real[i], 6.0, norm) for i in range(3)]  # type: ignore[arg-type]
    torch.testing.assert_close(whole, torch.stack(alone))
    torch.testing.assert_close(whole[0], (real[0] + noise[0]).clamp(0, 255))
    assert (whole[1:] != (real + noise)[1:]).any()


# --- gradients and the choice of a target -----------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("size", [SIZE, 150])
def test_one_forward_pass_gives_the_gradients_of_separate_passes(size: int, batched: bool) -> None:
    plain = [Tiny(1), Tiny(2, 16)]
    targets = identities(plain, 4)
    made = masker(Mask(jpeg=80), copy.deepcopy(plain), size=size)
    reference = masker(Mask(jpeg=80), plain, size=size)
    real = planes(crops(2, 5, size)).float()
    own = made.embed(real)
    assert made.targets is not None
    x = (real + 3).clamp(0, 255).requires_grad_()
    found = target_gradients(made.embed(x), x, 2 * (own - made.targets[:, None]), batched)
    for k, i in itertools.product(range(4), range(2)):
        one = (real[i : i + 1] + 3).clamp(0, 255).requires_grad_()
        chip = reference.cut(jpeg(one, 80) / 255)
        # Equation 3, averaged over the ensemble.
        loss = torch.zeros(())
        for surrogate, target in zip(plain, targets, strict=True):
            f = surrogate.embed(chip)[0]
            f_real = surrogate.embed(reference.cut(jpeg(real[i : i + 1], 80) / 255))[0]
            loss = loss + ((f - target[k]).square().sum() - (f - f_real).square().sum()) / 2
        loss.backward()
        torch.testing.assert_close(found[k, i], one.grad[0], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("choice", ["G", "G1", "G2"])
def test_the_gain_is_equation_9_and_its_variants(choice: str) -> None:
    generator = torch.Generator().manual_seed(3)
    real, targets = torch.rand(5, generator=generator) * 4, torch.rand(5, 6, generator=generator) * 4
    pick: Callable[..., float] = {"G": max, "G1": lambda v: sum(v), "G2": min}[choice]
    for i, value in enumerate(gain(real, targets, choice)):  # type: ignore[arg-type]
        each = [math.exp(float(real[i]) - float(t)) for t in targets[i]]
        assert float(value) == pytest.approx(math.log(1 + pick(each)), rel=1e-5)


@pytest.mark.parametrize("choice", ["G", "G1", "G2"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_target_of_a_step_is_the_one_that_trying_all_finds(choice: str, norm: str) -> None:
    how = Mask(choice=choice, norm=norm, alpha=4.0, steps=1)  # type: ignore[arg-type]
    made = masker(how, targets=6)
    assert made.targets is not None
    real = planes(crops(5, 7)).float()
    x = (real + 2).clamp(0, 255)
    own = made.embed(real)
    leaf = x.clone().requires_grad_()
    each = target_gradients(made.embed(leaf), leaf, 2 * (own - made.targets[:, None]))
    found = made.greedy(x, each, real, own)
    expected = []
    for i in range(len(x)):
        best, chosen = 0.0, -1
        for k, target in enumerate(made.targets):
            one = x[i].clone().requires_grad_()
            f = made.embed(one[None])[0]
            ((f - target).square().sum() - (f - own[i]).square().sum()).backward()
            assert one.grad is not None
            if norm == "linf":
                candidate = one.detach() - 4.0 * one.grad.sign()
                candidate = torch.maximum(torch.minimum(candidate, real[i] + 12), real[i] - 12)
            else:
                step = one.grad / one.grad.norm() * 4.0 * math.sqrt(one.numel())
                change = one.detach() - step - real[i]
                candidate = real[i] + change * min(1.0, 12 * math.sqrt(one.numel()) / float(change.norm()))
            g = made.embed(candidate.clamp(0, 255)[None])[0]
            terms = [math.exp(float((g - own[i]).square().sum() - (g - t).square().sum())) for t in made.targets]
            value = math.log(1 + {"G": max, "G1": sum, "G2": min}[choice](terms))  # type: ignore[operator]
            if value > best:
                best, chosen = value, k
        expected.append(chosen)
    assert found.tolist() == expected
    assert len(set(expected)) > 1 or choice != "G"


def test_an_ensemble_is_the_mean_of_its_squared_distances() -> None:
    surrogates = [Tiny(1), Tiny(2, 16), Tiny(3)]
    made = masker(Mask(), surrogates)
    x = planes(crops(2))
    a, b = made.embed(x.float())
    chips = x.float() / 255
    each = [(s.embed(chips)[0] - s.embed(chips)[1]).square().sum() for s in surrogates]
    torch.testing.assert_close((a - b).square().sum(), torch.stack(each).mean())


def test_choosing_by_the_gain_comes_nearer_to_a_target_than_at_random_or_by_the_farthest() -> None:
    nearest = {}
    for choice in ("G", "G1", "G2", "rand", "single"):
        made, x, masked = run(Mask(choice=choice, epsilon=6, steps=12), targets=8)  # type: ignore[arg-type]
        nearest[choice] = float(distance_to_nearest(made, masked.pixels).mean())
        assert nearest[choice] < float(distance_to_nearest(made, x).mean())
        assert masked.chosen.shape == (12, 3)
        assert ((masked.chosen >= 0) & (masked.chosen < 8)).all()
        if choice == "single":
            assert (masked.chosen == masked.chosen[0]).all()
        if choice == "rand":
            assert len(masked.chosen.unique()) > 4
    assert nearest["G"] < min(nearest["G2"], nearest["rand"])


def test_the_untargeted_cloak_takes_a_face_further_from_itself_than_noise_and_has_no_target() -> None:
    made, x, masked = run(Mask(choice="advnoise", epsilon=6, steps=12))
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(6)) * 2 - 1
    noisy = (x + 6 * signs).clamp(0, 255)
    moved, shaken = ((made.embed(p.float()) - made.embed(x.float())).square().sum(1) for p in (masked.pixels, noisy))
    assert (moved > 10 * shaken).all()
    assert (masked.chosen == -1).all()


# --- naturalness ------------------------------------------------------------------------------------------------------


def test_the_mmd_is_what_two_loops_over_the_definition_give() -> None:
    n, size = 5, 30
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, n, size, generator=generator, dtype=torch.float64) * 255
    y = x + torch.randn(2, n, size, generator=generator, dtype=torch.float64) * 4

    def kernel(a: Tensor, b: Tensor) -> float:
        d = float((a - b).square().sum()) * 3 * 112**2 / size
        return sum(math.exp(-d / (2 * v)) for v in VARIANCES)

    for one, other, value in zip(x, y, mmd(x, y), strict=True):
        naive = 0.0
        for i, j in itertools.product(range(n), range(n)):
            naive += kernel(one[i], one[j]) + kernel(other[i], other[j]) - 2 * kernel(one[i], other[j])
        assert float(value) == pytest.approx(naive / n**2, rel=1e-9)
        wide = (1e5, 1e7)
        naive = sum(
            math.exp(-float((a - b).square().sum()) * 3 * 112**2 / size / (2 * v)) * sign
            for first, second, sign in ((one, one, 1), (other, other, 1), (one, other, -2))
            for a in first
            for b in second
            for v in wide
        )
        assert float(mmd(one, other, wide)) == pytest.approx(naive / n**2, rel=1e-6)


def test_the_mmd_of_equal_batches_is_0_and_of_far_ones_the_papers() -> None:
    faces = planes(crops(50)).float().flatten(1)
    assert float(mmd(faces, faces).abs()) < 1e-6
    far = planes(crops(50, 1)).float().flatten(1)
    # Table 3 begins at 0.757: 2 x 19 / 50, less a rest.
    assert float(mmd(faces, far)) == pytest.approx(0.76, abs=1e-4)


@pytest.mark.parametrize("naturalness", ["batch", "augment"])
@pytest.mark.parametrize("balance", ["gradients", "losses"])
def test_a_larger_gamma_gives_a_smaller_mmd_and_a_picture_nearer_to_its_original(
    naturalness: str, balance: str
) -> None:
    discrepancy, quality = [], []
    for gamma in (0.0, 0.3, 3.0) if balance == "gradients" else (0.0, 3e3, 3e6):
        how = Mask(gamma=gamma, balance=balance, naturalness=naturalness, augmentations=4, steps=8)  # type: ignore[arg-type]
        _, x, masked = run(how, 4)
        discrepancy.append(float(mmd(masked.pixels.float().flatten(1), x.float().flatten(1))))
        quality.append(float(psnr(masked.pixels / 255, x / 255).mean()))
    assert discrepancy[0] > discrepancy[1] > discrepancy[2]
    assert quality[0] < quality[1] < quality[2]


@pytest.mark.parametrize("naturalness", ["batch", "augment"])
def test_naturalness_has_no_say_in_the_first_step_where_the_masks_are_still_nothing(naturalness: str) -> None:
    one, other = (
        run(Mask(gamma=gamma, naturalness=naturalness, augmentations=3, steps=1), 3)[2].pixels  # type: ignore[arg-type]
        for gamma in (0.0, 5.0)
    )
    assert torch.equal(one, other)


# --- what a release does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [30, 75, 92])
@pytest.mark.parametrize("subsampling", ["420", "444"])
@pytest.mark.parametrize("size", [112, 75])
def test_jpeg_in_the_loop_is_what_a_file_loses(quality: int, subsampling: str, size: int) -> None:
    pictures = crops(2, 8, size)
    noise = np.random.Generator(np.random.Philox(9)).normal(0, 6, pictures.shape)
    pictures = (pictures + noise).clip(0, 255).astype(np.uint8)
    exact = []
    for one in pictures:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=quality, subsampling={"420": 2, "444": 0}[subsampling])
        exact.append(np.asarray(Image.open(file)))
    ours = np.stack([decode(encode(one, quality, subsampling)) for one in pictures])  # type: ignore[arg-type]
    x = planes(pictures).float().requires_grad_()
    found = jpeg(x, quality, subsampling)  # type: ignore[arg-type]
    assert torch.equal(found, found.round())
    lost = (x.detach() - planes(np.stack(exact))).abs().mean()
    # Near to libjpeg's exact arithmetic; the project's own files are made with its fast one, as far from it again.
    assert (found - planes(np.stack(exact))).abs().mean() < 0.2 * lost
    assert (found - planes(ours)).abs().mean() < 0.5 * lost
    (gradient,) = torch.autograd.grad((found * planes(ours)).sum(), x)
    assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("release", ["jpeg", "resize"])
def test_a_mask_made_for_a_release_survives_it_better(release: str) -> None:
    def released(pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 2, 3, 1).numpy()
        if release == "jpeg":
            return planes(np.stack([decode(encode(one, 20)) for one in images]))
        return planes(np.stack([cv2.resize(one, (40, 40), interpolation=cv2.INTER_AREA) for one in images]))

    nearest = {}
    for options in ({}, {"jpeg": 20} if release == "jpeg" else {"resize": 40}):
        _, _, masked = run(Mask(epsilon=5, steps=15, **options), 4)  # type: ignore[arg-type]
        judge = masker(Mask())
        nearest[bool(options)] = float(distance_to_nearest(judge, released(masked.pixels)).mean())
    assert nearest[True] < nearest[False]


def test_input_diversity_is_off_by_default_and_keyed_where_it_is_on() -> None:
    assert Mask().diversity == 0
    one, same, none = (run(Mask(steps=4, diversity=d))[2].pixels for d in (0.1, 0.1, 0.0))
    other = run(Mask(steps=4, diversity=0.1), key=RunKey(bytes(32)))[2].pixels
    assert torch.equal(one, same)
    assert not torch.equal(one, none)
    assert not torch.equal(one, other)


# --- the stage --------------------------------------------------------------------------------------------------------


def stage(how: Mask, key: RunKey = KEY, column: str = "rendered", at_once: int | None = None) -> TipIm:
    made = TipIm(key, how, column, at_once=at_once)  # type: ignore[arg-type]
    made.surrogates = [Tiny()]
    made.targets = identities([Tiny()], 4)
    return made


def batch(pictures: list[np.ndarray], column: str = "rendered") -> Batch:
    names = [f"face-{int(p.sum()) % 9973}" for p in pictures]
    return {column: pictures, "face_id": names, "status": ["ok"] * len(names), "reason": [""] * len(names)}


@pytest.mark.parametrize("column", ["rendered", "crop"])
def test_the_stage_masks_its_column_and_says_which_target(column: str) -> None:
    made = stage(Mask(steps=2), column=column)
    pictures = list(crops(3, size=128))
    out = made(batch(pictures, column))
    assert set(made.inputs) == {column, "face_id"}
    assert set(made.outputs) == {column, "target", "status", "reason"}
    assert out["target"].dtype == np.int16
    assert ((out["target"] >= 0) & (out["target"] < 4)).all()
    assert list(out["status"]) == ["ok"] * 3
    for before, after in zip(pictures, out[column], strict=True):
        assert after.dtype == np.uint8
        assert after.shape == before.shape
        assert 0 < np.abs(after.astype(int) - before).max() <= 12


@pytest.mark.parametrize("choice", ["G", "rand", "single", "advnoise"])
def test_a_mask_depends_on_the_face_and_the_key_and_not_on_the_company(choice: str) -> None:
    how = Mask(steps=4, choice=choice, gamma=0.5, naturalness="augment", augmentations=3)  # type: ignore[arg-type]
    pictures = list(crops(4, size=128))
    whole = stage(how, at_once=3)(batch(pictures))["rendered"]
    again = stage(how, at_once=3)(batch(pictures[::-1]))["rendered"][::-1]
    alone = [stage(how, at_once=3)(batch([one]))["rendered"][0] for one in pictures]
    for one, other, third in zip(whole, again, alone, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)
    if choice != "G":
        plain = Mask(steps=4, choice=choice)  # type: ignore[arg-type]
        keyed, other_key = (stage(plain, key)(batch(pictures))["rendered"] for key in (KEY, RunKey(bytes(32))))
        assert not all(map(np.array_equal, keyed, other_key))


def test_as_many_faces_as_ever_go_through_the_surrogate_together() -> None:
    class Counting(Tiny):
        seen: ClassVar[set[int]] = set()

        def embed(self, faces: Tensor) -> Tensor:
            self.seen.add(len(faces))
            return super().embed(faces)

    made = stage(Mask(steps=1), at_once=3)
    made.surrogates = [Counting()]
    made(batch(list(crops(4, size=128))))
    assert Counting.seen == {3}


def test_faces_of_one_mmd_go_together_and_their_micro_batch_repeats() -> None:
    how = Mask(steps=3, gamma=0.5)
    assert how.coupled
    assert TipIm(KEY, how).at_once == 50
    assert TipIm(KEY, Mask()).at_once == 1
    pictures = list(crops(4, size=128))
    first, again = (stage(how, at_once=2)(batch(pictures))["rendered"] for _ in range(2))
    assert all(map(np.array_equal, first, again))
    half = stage(how, at_once=2)(batch(pictures[:2]))["rendered"]
    assert all(map(np.array_equal, first[:2], half))


def test_a_row_that_fails_loses_its_picture_and_costs_no_other_row() -> None:
    good = list(crops(2, size=128))
    rows = batch([good[0], good[0][:100], good[1], good[0]])
    rows["status"][3], rows["reason"][3] = "no-face", "detect: none"
    out = stage(Mask(steps=1))(rows)
    assert list(out["status"]) == ["ok", "failed", "ok", "no-face"]
    assert out["rendered"][1] is None
    assert "tip-im" in out["reason"][1]
    assert out["target"].tolist()[1::2] == [-1, -1]
    assert out["rendered"][3] is good[0]

    class Broken(Tiny):
        def embed(self, faces: Tensor) -> Tensor:
            raise RuntimeError("no memory")

    broken = stage(Mask(steps=1))
    broken.surrogates = [Broken()]
    out = broken(batch(good))
    assert list(out["status"]) == ["failed"] * 2
    assert out["rendered"] == [None, None]


@pytest.mark.parametrize(
    "options,word",
    [
        ({"epsilon": 0}, "epsilon"),
        ({"alpha": -1}, "alpha"),
        ({"gamma": -0.1}, "gamma"),
        ({"momentum": float("nan")}, "momentum"),
        ({"steps": 0}, "step"),
        ({"jpeg": 101}, "jpeg"),
        ({"jpeg": 90, "subsampling": "422"}, "subsampling"),
        ({"resize": 8}, "resize"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mask(**options)  # type: ignore[arg-type]


def test_targets_are_needed_unless_there_is_none_to_reach() -> None:
    with pytest.raises(ValueError, match="target"):
        Masker([Tiny()], None, Mask(), SIZE, "arcface")
    with pytest.raises(ValueError, match="targets"):
        TipIm(KEY, targets=0)
    with pytest.raises(ValueError, match="surrogate"):
        Masker([], None, Mask(choice="advnoise"), SIZE, "arcface")
    assert Masker([Tiny()], None, Mask(choice="advnoise"), SIZE, "arcface").targets is None


# --- with real networks -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(weights: Callable[[str], Path]) -> np.ndarray:
    """FFHQ crops of five people who do not exist: (5, 256, 256, 3) uint8."""
    photos = [cv2.cvtColor(cv2.imread(str(PEOPLE / f"p{p:02}" / "1.jpg")), cv2.COLOR_BGR2RGB) for p in (1, 2, 7, 8, 9)]
    found = Align(256)(Detect(weights("scrfd-500m"))({"photo": photos}))
    assert list(found["status"]) == ["ok"] * 5
    return np.stack(found["crop"])


def test_arcface_takes_two_people_for_a_target_in_the_files_that_are_released(
    people: np.ndarray, weights: Callable[[str], Path]
) -> None:
    surrogate = recognise.load("arcface-mobilefacenet", folder=weights("arcface-mobilefacenet").parent)
    made = TipIm(KEY, Mask(steps=8, jpeg=92), "crop", targets=list(people[2:]))
    made.surrogates = [surrogate]
    made.targets = embeddings(made.surrogates, list(people[2:]))
    rows = batch(list(people[:2]), "crop")
    out = made(rows)
    files = [decode(encode(one)) for one in out["crop"]]
    (before,), (after,) = (embeddings(made.surrogates, faces) for faces in (list(people[:2]), files))
    (targets,) = made.targets
    assert ((before @ targets.T).amax(1) < 0.3).all()
    assert ((after @ targets.T).amax(1) > 0.4).all()
    assert ((after * before).sum(1) < 0.1).all()
    assert (after @ targets.T).argmax(1).tolist() == out["target"].tolist()
    for one, other in zip(people, out["crop"], strict=False):
        assert np.abs(one.astype(int) - other).max() == 12
        x, y = (planes(p[None]).float() / 255 for p in (one, other))
        assert float(ssim(x, y)) > 0.65


def test_generated_targets_are_drawn_by_the_key_and_are_different_people(weights: Callable[[str], Path]) -> None:
    generator = MobileStyleGAN.load(weights("mobilestylegan-ffhq"))
    if min(map(int, generator.heads)) > 256:
        pytest.skip("the generator has no head for small pictures, and the whole network takes too long")
    three, two = (generated_targets(KEY, count, generator) for count in (3, 2))
    assert three.shape == (3, 256, 256, 3)
    assert np.array_equal(three[:2], two)
    assert not np.array_equal(generated_targets(RunKey(bytes(32)), 1, generator)[0], three[0])
    surrogate = recognise.load("arcface-mobilefacenet", folder=weights("arcface-mobilefacenet").parent)
    (found,) = embeddings([surrogate], list(three))
    assert ((found @ found.T).triu(1) < 0.5).all()
