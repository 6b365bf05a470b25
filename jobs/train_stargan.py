"""``facecrowd train stargan``: the network that translates a face's attributes, as the papers train it and as we do.

One step is ``critics`` updates of the discriminator and one of the generator. Labels of photos that no table names, and
of generated faces, are those of the predictor that steers (never of the judge). Beside photos there may be *groups* of
generated faces (``edited_groups``): the same face with other attributes, to be met pixel by pixel. That loss is ours,
and teaches in minutes what the adversarial one needs days for.

    L_D = L_adv + gp GP + cls L_cls(real)
    L_G = -L_adv + cls L_cls(fake) + rec L_rec + pair |G(x, c) - y|^2 / |x - y|^2 + teach L_teach + calm L_calm
          + id(step) L_id

L_teach asks predictors that were trained before (as adaptive obfuscation's attribute discriminator was), in turns, and
stops asking where they agree; L_calm is the total variation of the change, which keeps it from patterns that only they
see. What they say of the result is no evidence for it: that is for the judge.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.jobs.edited_groups import KEPT, VARIANTS, groups
from facecrowd.jobs.labelled import CACHE, Faces
from facecrowd.jobs.labelled import faces as faces_of
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.presets import FIVE_PARTS
from facecrowd.stages import chip, models
from facecrowd.stages.attributes import ATTRIBUTES, STEER, Predictor, pictures
from facecrowd.stages.networks import stargan
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.places import HAIR_COLOURS

SEED = 20261123
HELD = 8
"""Groups held out, and faces of the sample grid."""

SHOWN = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young", "Wearing_Lipstick", *FIVE_PARTS)
"""What the shipped weights translate: StarGAN's five, whose settings AnonymousNet follows, lip colour, which its Figure
8 changes too, and the five parts of adaptive obfuscation."""

IDENTITY = "arcface-mobilefacenet"
"""The recogniser of L_id."""

TEACHERS = (STEER, "attributes-googlenet")
"""Predictors of L_teach; neither shares people or backbone with the judge."""

MARGIN = 1.5
"""So far beyond its threshold, in logits, a teacher's opinion counts as settled."""


@dataclass(frozen=True)
class Preset:
    """steps : updates of the generator, critics of the discriminator before each; epochs : instead, over the photos
    batch : photos and, where there are groups, as many generated pairs; groups : generated faces, each with edited ones
    hold : share of the steps before the rate falls linearly to 0
    warm : steps on pairs alone, at a rate of their own, before the discriminator joins
    smooth : differences below it are squared in L_rec, above it taken as they are; 0 is the papers' L1, which holds a
        network that begins as the identity where it is
    cls, rec, pair, teach, calm, id, gp : weights of the losses; of L_id the last, reached linearly from half of the
        steps on
    decay : of the generator's moving average; 0 is none
    """

    steps: int
    batch: int
    critics: int = 5
    side: int = 128
    width: int = 64
    epochs: int = 0
    groups: int = 0
    rate: float = 1e-4
    hold: float = 0.5
    residual: bool = True
    encoding: stargan.Encoding = "difference"
    augment: bool = True
    layers: int = 6
    cls: float = 1.0
    rec: float = 10.0
    pair: float = 10.0
    warm: int = 0
    warm_rate: float = 2e-3
    smooth: float = 0.5
    teach: float = 1.0
    calm: float = 2.0
    id: float = 0.0
    gp: float = 10.0
    decay: float = 0.999


PAPER: dict[str, Any] = {
    "residual": False,
    "encoding": "target",
    "augment": False,
    "decay": 0.0,
    "smooth": 0.0,
    "teach": 0.0,
    "calm": 0.0,
}
PRESETS = {
    "cpu": Preset(
        3_600, 10, 1, 64, 32, groups=240, rate=8e-4, layers=5, warm=800, hold=0.5, decay=0.99, teach=2.0, pair=5.0
    ),
    "gpu": Preset(11_000, 64, 5, 128, 64, groups=6_000, rate=2e-4, warm=3_000),
    "anonymousnet": Preset(40_000, 16, **PAPER),
    "adaptive": Preset(0, 16, epochs=20, id=1.0, **PAPER),
    "identity": Preset(
        400, 10, 1, 64, 32, groups=240, rate=4e-4, layers=5, hold=0.3, decay=0.99, teach=2.0, pair=5.0, id=4.0
    ),
    "smoke": Preset(4, 2, 2, 64, 8, groups=HELD + 2, layers=4, warm=1),
}
"""The papers': AnonymousNet has StarGAN's 200,000 discriminator steps of 16; adaptive obfuscation 10 + 10 epochs and
L_id. ``identity`` goes on from the weights of ``cpu``, with L_id."""


def shape_of(preset: Preset, attributes: tuple[str, ...]) -> stargan.Shape:
    return stargan.Shape(attributes, preset.width, preset.side, residual=preset.residual, encoding=preset.encoding)


@dataclass(frozen=True)
class Data:
    """Pictures (N, 3, S, S) uint8 and values (N, A) in [0, 1] of photos; of groups (B, 1 + VARIANTS, ...)."""

    photos: Tensor
    values: Tensor
    group_photos: Tensor
    group_values: Tensor

    def to(self, device: torch.device) -> Data:
        return Data(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Batch:
    """N faces: large (N, 3, L, L) as they are kept, x (N, 3, S, S) as the network sees them, both in [-1, 1]; c (N, A);
    values before and after (N, A); y (P, 3, S, S), what the last P of them shall become."""

    large: Tensor
    x: Tensor
    c: Tensor
    before: Tensor
    after: Tensor
    y: Tensor


class StarganTask:
    """Trains a generator and its moving average. data : see ``Data``; start : weights to begin with"""

    def __init__(
        self, data: Data, preset: Preset, attributes: tuple[str, ...], work: Path, start: stargan.Generator | None
    ) -> None:
        if preset.epochs:
            preset = replace(preset, steps=preset.epochs * len(data.photos) // preset.batch // preset.critics)
        if not len(data.photos) and not len(data.group_photos):
            raise ConfigError("there is nothing to train on: give --data, or a preset with generated groups")
        self.preset, self.steps, self.work, self.attributes = preset, preset.steps, work, attributes
        digest = hashlib.sha256(json.dumps([asdict(preset), attributes, SEED]).encode())
        for name in Data.__dataclass_fields__:
            digest.update(getattr(data, name).numpy().tobytes())
        self.device = training.device()
        torch.manual_seed(SEED)
        shape = shape_of(preset, attributes)
        if start is not None:
            if start.shape != shape:
                raise ConfigError(f"the weights to start from are of another shape: {start.shape}")
            for value in start.state_dict().values():
                digest.update(value.numpy().tobytes())
        self.identity = digest.hexdigest()
        self.data = data.to(self.device)
        self.generator = stargan.Generator(shape)
        if start is not None:
            self.generator.load_state_dict(start.state_dict())
        self.generator.to(self.device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.discriminator = stargan.Discriminator(len(attributes), preset.side, preset.width, preset.layers)
        self.discriminator.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        both = (self.generator, self.discriminator)
        self.optimisers = [torch.optim.Adam(n.parameters(), preset.rate, betas=(0.5, 0.999)) for n in both]
        self.recogniser = MobileFaceNet.load(models.path(IDENTITY)).to(self.device) if preset.id else None
        self.chip = chip.Chip(preset.side).to(self.device)
        self.columns = [ATTRIBUTES.index(name) for name in attributes]
        self.teachers = [Predictor.load(name, device=str(self.device)) for name in TEACHERS] if preset.teach else []
        self.thresholds = [
            torch.logit(torch.from_numpy(t.calibration.threshold))[self.columns].to(self.device) for t in self.teachers
        ]
        # Pictures of a face that differ in what is seen: a group and two of its places.
        seen = self.data.group_values[HELD:]
        self.pairs = (seen[:, :, None] != seen[:, None]).any(-1).nonzero() + torch.tensor([HELD, 0, 0]).to(self.device)
        self.warm = preset.warm if len(self.pairs) else 0
        self.hair = [i for i, name in enumerate(attributes) if name in HAIR_COLOURS]

    @property
    def layout(self) -> torch.memory_format:
        """Channels last is fastest on a GPU; on a CPU it costs a fifth."""
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format

    def half(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def batch(self, draw: torch.Generator, photos: bool = True) -> Batch:
        """Photos with another's values, and pairs; ``photos`` : whether there are others than pairs."""
        x, source, target = [], [], []
        n = self.preset.batch
        if len(self.data.photos) and photos:
            rows = training.share(torch.randint(len(self.data.photos), (n,), generator=draw))
            others = training.share(torch.randint(len(self.data.photos), (n,), generator=draw))
            x.append(self.data.photos[rows])
            source.append(self.data.values[rows])
            target.append(self.mixed(source[0], self.data.values[others], draw))
        y = self.data.photos[:0]
        if len(self.pairs):
            rows, one, other = self.pairs[training.share(torch.randint(len(self.pairs), (n,), generator=draw))].T
            x.append(self.data.group_photos[rows, one])
            source.append(self.data.group_values[rows, one])
            target.append(self.data.group_values[rows, other])
            y = self.data.group_photos[rows, other]
        before, after = torch.cat(source), torch.cat(target)
        flip = training.share(torch.rand(n, 1, 1, 1, generator=draw)).to(self.device) < 0.5
        large, pair = _scaled(torch.cat(x)), self.small(_scaled(y))
        large = torch.where(flip.repeat(len(x), 1, 1, 1), large.flip(3), large)
        pair = torch.where(flip[: len(pair)], pair.flip(3), pair)
        c = self.generator.condition(before.round(), after.round())
        return Batch(large, self.small(large), c, before, after, pair)

    def small(self, x: Tensor) -> Tensor:
        """Pictures at the network's side."""
        side = self.preset.side
        return F.interpolate(x, (side, side), mode="area") if len(x) and x.shape[-1] != side else x

    def mixed(self, source: Tensor, other: Tensor, draw: torch.Generator) -> Tensor:
        """Target values: another face's, all of them as in the papers; with differences half of them, chosen anew for
        every face, colours of hair together."""
        if self.preset.encoding == "target":
            return other
        take = torch.rand(*source.shape, generator=draw) < 0.5
        if self.hair:
            take[:, self.hair] = take[:, self.hair[:1]]
        return torch.where(take.to(source.device), other, source)

    def seen(self, x: Tensor, draw: torch.Generator) -> Tensor:
        return stargan.augment(x, draw) if self.preset.augment else x

    def step(self, number: int) -> dict[str, float]:
        draw = training.generator(SEED, number)
        warming = number < self.warm
        done = (number - self.warm) / max(self.steps - self.warm, 1)
        rate = self.preset.warm_rate if warming else self.preset.rate
        rate *= min(1.0, (1 - done) / (1 - self.preset.hold)) if done > self.preset.hold else 1.0
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        figures: dict[str, float] = {}
        if warming:
            b = self.batch(draw, photos=False)
            with self.half():
                fake = self.generator(b.x, b.c).float()
            loss = difference_left(fake, b.x, b.y)
            self.update(0, loss)
            figures = {"g_pair": self.preset.pair * float(loss.detach())}
        else:
            for _ in range(self.preset.critics):
                figures = self.criticise(draw)
            figures |= self.generate(draw, done, number)
        with torch.no_grad():
            decay = min(self.preset.decay, (number + 1) / (number + 10)) if self.preset.decay else 0.0
            for slow, fast in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        return figures

    def criticise(self, draw: torch.Generator) -> dict[str, float]:
        """One update of the discriminator."""
        b = self.batch(draw)
        with torch.no_grad(), self.half():
            fake = self.generator(b.x, b.c).float()
        real = self.seen(b.x, draw)
        fake = self.seen(fake, draw)
        with self.half():
            score, logits = self.discriminator(real)
            other, _ = self.discriminator(fake)
        adversarial = other.float().mean() - score.float().mean()
        alpha = torch.rand(len(real), 1, 1, 1, generator=draw).to(self.device)
        penalty = stargan.gradient_penalty(self.discriminator, real, fake, alpha)
        cls = stargan.classification(logits, b.before)
        self.update(1, adversarial + self.preset.gp * penalty + self.preset.cls * cls)
        return {"d_adv": float(adversarial.detach()), "d_gp": float(penalty.detach()), "d_cls": float(cls.detach())}

    def generate(self, draw: torch.Generator, done: float, number: int) -> dict[str, float]:
        """One update of the generator; ``done`` : share of the steps with a discriminator."""
        b = self.batch(draw)
        photos = len(b.x) - len(b.y)
        with self.half():
            fake = self.generator(b.x, b.c)
            score, logits = self.discriminator(self.seen(fake, draw))
        fake = fake.float()
        # Of a discriminator that has just begun nothing can be learned.
        trust = min(1.0, done * 10) if self.warm else 1.0
        losses = {
            "g_adv": -trust * score.float().mean(),
            "g_cls": trust * self.preset.cls * stargan.classification(logits, b.after),
        }
        if photos:
            back = self.generator.condition(b.after[:photos].round(), b.before[:photos].round())
            with self.half():
                again = self.generator(fake[:photos], back).float()
            losses["g_rec"] = self.preset.rec * F.smooth_l1_loss(again, b.x[:photos], beta=self.preset.smooth)
        if len(b.y):
            losses["g_pair"] = self.preset.pair * difference_left(fake[photos:], b.x[photos:], b.y)
        if self.teachers:
            losses["g_teach"] = self.preset.teach * self.taught(b, fake, slice(photos or None), draw, number)
            change = fake - b.x
            rough = (change[..., 1:] - change[..., :-1]).abs().mean() + (
                change[..., 1:, :] - change[..., :-1, :]
            ).abs().mean()
            losses["g_calm"] = self.preset.calm * rough
        grown = max(0.0, done * 2 - 1)
        if self.recogniser is not None and grown > 0:
            losses["g_id"] = self.preset.id * grown * self.identity_loss(b.x, fake)
        self.update(0, sum(losses.values(), torch.zeros((), device=self.device)))
        return {name: float(value.detach()) for name, value in losses.items()}

    def taught(self, b: Batch, fake: Tensor, rows: slice, draw: torch.Generator, number: int) -> Tensor:
        """How far a teacher's opinion of some faces, at their kept size, falls short of what was asked, per face: of
        photos, since pairs have their pictures."""
        which = number % len(self.teachers)
        teacher, threshold = self.teachers[which], self.thresholds[which]
        large, after, c = b.large[rows], b.after[rows], b.c[rows]
        change = F.interpolate((fake - b.x)[rows], large.shape[-2:], mode="bilinear", align_corners=False)
        shown = ((large + change).clamp(-1, 1) + 1) / 2
        # Moved a little, and with noise: what holds only of these very pixels is no attribute.
        theta = torch.eye(2, 3).repeat(len(shown), 1, 1) * (0.95 + 0.1 * torch.rand(len(shown), 1, 1, generator=draw))
        theta[:, :, 2] = (torch.rand(len(shown), 2, generator=draw) - 0.5) * 0.1
        grid = F.affine_grid(theta, list(shown.shape), align_corners=False).to(shown)
        seen = F.grid_sample(shown, grid, padding_mode="border", align_corners=False)
        seen = seen + 0.02 * torch.randn(seen.shape, generator=draw).to(seen)
        with self.half():
            logits = teacher.logits(seen)
        beyond = (logits.float()[:, self.columns] - threshold) * (2 * after.round() - 1)
        asked = c != 0 if self.preset.encoding == "difference" else torch.ones_like(c, dtype=torch.bool)
        short = torch.where(asked, F.relu(MARGIN - beyond), 0.2 * F.relu(-beyond))
        return short.sum(dim=1).mean()

    def identity_loss(self, x: Tensor, fake: Tensor) -> Tensor:
        assert self.recogniser is not None
        with torch.no_grad():
            one = self.recogniser.maps(self.chip(x / 2 + 0.5))
        other = self.recogniser.maps(self.chip(fake.clamp(-1, 1) / 2 + 0.5))
        return stargan.identity(list(one), list(other))

    def update(self, which: int, loss: Tensor) -> None:
        network = (self.generator, self.discriminator)[which]
        self.optimisers[which].zero_grad(set_to_none=True)
        # The generator's loss reaches the discriminator's weights too; only this network's gradients are wanted.
        parameters = list(network.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        training.average(parameters)
        self.optimisers[which].step()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of groups held out: the share of the difference to the picture wanted that a translation leaves (1 for doing
        nothing). Writes a grid of samples: each face, and each attribute changed."""
        if len(self.data.group_photos) <= HELD:
            return {}
        photos, values = self.data.group_photos[:HELD], self.data.group_values[:HELD]
        x, y = self.small(_scaled(photos[:, 0])), self.small(_scaled(photos[:, 1]))
        with self.half():
            made = self.average(x, self.average.condition(values[:, 0].round(), values[:, 1].round())).float()
            rows = [x]
            for i in range(len(self.attributes)):
                flipped = values[:, 0].round().clone()
                flipped[:, i] = 1 - flipped[:, i]
                if i in self.hair:
                    flipped[:, [h for h in self.hair if h != i]] = 0
                rows.append(self.average(x, self.average.condition(values[:, 0].round(), flipped)).float())
        grid = torch.stack(rows, dim=1).clamp(-1, 1).cpu()
        n, columns, _, side, _ = grid.shape
        flat = grid.permute(0, 3, 1, 4, 2).reshape(n * side, columns * side, 3)
        self.work.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((flat + 1) * 127.5).round().byte().numpy()).save(self.work / "samples.jpg", quality=90)
        return {"held_pair": float(difference_left(made, x, y))}

    def state(self) -> dict[str, Any]:
        names = ("generator", "average", "discriminator")
        networks = {name: getattr(self, name).state_dict() for name in names}
        return {**networks, "optimisers": [o.state_dict() for o in self.optimisers]}

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("generator", "average", "discriminator"):
            getattr(self, name).load_state_dict(state[name])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)


LEAST = 5e-4
"""Pictures that differ less, in mean square, are not blown up."""


def difference_left(made: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean over pairs of |made - y|^2 / |x - y|^2: small parts count like whole faces."""
    left, all_ = ((p - y).square().mean((1, 2, 3)) for p in (made, x))
    return (left / (all_ + LEAST)).mean()


def _scaled(x: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return x.float() / 127.5 - 1


# --------------------------------------------------------------------------------------------------------------- data


def photos(faces: Faces, attributes: tuple[str, ...], side: int, predictor: Predictor) -> tuple[Tensor, Tensor]:
    """Pictures and values of labelled faces; a label that is not there is the predictor's probability."""
    columns = [ATTRIBUTES.index(name) for name in attributes]
    parts, values = [], []
    for start in range(0, len(faces), 64):
        chunk = faces.take(np.arange(start, min(start + 64, len(faces))))
        crops = chunk.pixels()
        parts.append((pictures(crops, side) * 255).round().to(torch.uint8))
        labels = chunk.labels[:, columns].copy()
        if np.isnan(labels).any():
            seen = predictor.predict(crops)
            told = predictor.calibration.values(seen).astype(np.float32)[:, columns]
            labels = np.where(np.isnan(labels), told, labels)
        values.append(torch.from_numpy(labels))
    return torch.cat(parts), torch.cat(values)


def run(
    output: Path,
    data: list[Path],
    preset: str,
    attributes: tuple[str, ...],
    start: Path | None,
    work: Path | None,
    workers: int,
    every: int,
    cache: Path | None,
    models_folder: str | None,
    say: Callable[[str], None],
) -> None:
    """What the command does: train on the photos in ``data`` (of people of the split *steer* alone, where labelled by
    hand; the judge and the test never saw them) and on generated groups, then write the moving average's weights."""
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: is none of {', '.join(PRESETS)}")
    unknown = sorted(set(attributes) - set(ATTRIBUTES))
    if unknown or not attributes:
        raise ConfigError(f"--attributes: {', '.join(unknown) or 'names none'}; known are {', '.join(ATTRIBUTES)}")
    chosen = PRESETS[preset]
    begin = stargan.Generator.load(start) if start else None
    if begin is not None and begin.shape != shape_of(chosen, attributes):
        raise ConfigError(f"--start {start}: the weights are of another shape: {begin.shape}")
    folder = work or output.with_suffix(".work")
    # Teachers look at more pixels than a small network does.
    side, none = max(chosen.side, KEPT) if chosen.teach else chosen.side, len(attributes)
    pixels, values = [torch.empty(0, 3, side, side, dtype=torch.uint8)], [torch.empty(0, none)]
    unlabelled: set[str] = set()
    if data:
        predictor = Predictor.load(STEER, models_folder)
        for place in data:
            found = faces_of(place, None, cache or CACHE, models_folder, say)
            # Labels by hand are what the judge learned from, so of its people none may be used here.
            splits = ("steer",) if np.isfinite(found.labels).any() else ("steer", "judge")
            found = found.of(*splits)
            x, y = photos(found, attributes, side, predictor)
            pixels.append(x)
            values.append(y)
            unlabelled |= set(splits) if len(splits) > 1 else set()
            say(f"{place.name}: {len(found)} faces of {len(set(found.subject.tolist()))} people")
    group = torch.empty(0, 1 + VARIANTS, 3, side, side, dtype=torch.uint8), torch.empty(0, 1 + VARIANTS, none)
    if chosen.groups:
        group = groups(chosen.groups, attributes, side, folder, say)
    whole = Data(torch.cat(pixels), torch.cat(values), *group)

    def make() -> StarganTask:
        return StarganTask(whole, chosen, attributes, folder, begin)

    task = training.run(make, folder, every, workers, say)
    state = {name: value.detach().cpu().half().contiguous() for name, value in task.average.state_dict().items()}
    task.average.about |= {
        "preset": preset,
        "splits": ["steer"],
        "unlabelled_splits": sorted(unlabelled),
        "labels": f"given, else by {STEER}",
        "steps": task.steps,
        "teachers": list(TEACHERS) if chosen.teach else [],
        "identity_loss": IDENTITY if chosen.id else None,
        **task.measure(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(output), metadata=task.average.metadata())
    say(f"wrote {output}")
