"""``facecrowd train encoder``: the network that gives every face its place in the generator's latent space.

Two kinds of supervision in every step. Generated faces come with their latent: the loss is the distance to it. Real
faces have none: their latent is generated again, and the picture is compared in pixels, in LPIPS's deep features and by
a recogniser, with a weak pull to the mean latent. Real ones join late, since comparing pictures costs far more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.jobs.labelled import CACHE, Faces
from facecrowd.jobs.labelled import faces as faces_of
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages import models
from facecrowd.stages.attributes import pictures
from facecrowd.stages.chip import Chip
from facecrowd.stages.networks.encoder import BACKBONE, Translator, shrink
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE, MobileStyleGAN
from facecrowd.stages.networks.vgg import Lpips

SEED = 20261121
HELD = 128


@dataclass(frozen=True)
class Preset:
    """``pairs`` generated faces; ``steps`` of ``batch`` of them, the last ``real_steps`` with ``real_batch`` real."""

    pairs: int
    steps: int
    batch: int
    real_steps: int
    real_batch: int
    rate: float = 1e-3
    side: int = 128


PRESETS = {
    "cpu": Preset(4_000, 3_000, 32, 500, 4),
    "gpu": Preset(60_000, 40_000, 64, 30_000, 32),
    "smoke": Preset(24, 6, 8, 2, 2),
}
LATENT, PIXEL, PERCEPTUAL, IDENTITY, PULL = 1.0, 1.0, 0.8, 0.5, 0.02
"""Weights of the losses."""


class EncoderTask:
    """Trains the ``Translator`` of the encoder. faces : real ones or None; one subject in twenty is held out."""

    def __init__(self, faces: Faces | None, preset: Preset, work: Path) -> None:
        self.preset, self.steps = preset, preset.steps
        self.device = training.device()
        generator = models.path("mobilestylegan-ffhq")
        told = [asdict(preset), SEED, models.sha256(generator), faces.fingerprint if faces else ""]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        self.generator = MobileStyleGAN.load(generator).to(self.device)
        self.backbone = MobileFaceNet.load(models.path(BACKBONE)).to(self.device)
        self.lpips = Lpips.load(models.path("lpips-vgg16")).to(self.device)
        self.latents, self.maps = pairs(self.generator, self.backbone, preset.pairs + HELD, preset.side, work)
        centre = self.generator.mean_latent
        self.spread = (self.latents.float() - centre.cpu()).square().mean().to(self.device)
        self.real = self.held = torch.empty(0)
        if faces is not None:
            held = faces.folds(20) == 0
            self.real, self.held = (_pixels(faces.take(rows), preset.side) for rows in (~held, held))
            self.held = self.held[:64]
        self.chip = Chip(preset.side).to(self.device)
        torch.manual_seed(SEED)
        self.network = Translator().to(self.device).train()
        self.network.mean.copy_(centre)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), preset.rate, betas=(0.9, 0.99), weight_decay=1e-2)

    def rate(self, number: int) -> float:
        """The learning rate of a step: down to three tenths on generated faces alone, then to almost nothing."""
        first = self.steps - self.preset.real_steps
        at = number / first if number < first else (number - first) / self.preset.real_steps
        high, low = (1.0, 0.3) if number < first else (0.3, 0.01)
        warm = min(1.0, (number + 1) / 100)
        return self.preset.rate * warm * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * at)))

    def step(self, number: int) -> dict[str, float]:
        draw = training.generator(SEED, number)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(number)
        self.optimiser.zero_grad(set_to_none=True)
        rows = training.share(torch.randint(len(self.latents) - HELD, (self.preset.batch,), generator=draw))
        found = self.network([m[rows].float().to(self.device) for m in self.maps])
        latent = F.mse_loss(found, self.latents[rows].float().to(self.device)) / self.spread
        (LATENT * latent).backward()
        figures = {"latent": float(latent.detach())}
        if number >= self.steps - self.preset.real_steps and len(self.real):
            chosen = training.share(torch.randint(len(self.real), (self.preset.real_batch,), generator=draw))
            x = self.real[chosen].to(self.device).float() / 255
            if torch.rand(1, generator=draw) < 0.5:
                x = x.flip(3)
            # Few real faces at a time: their statistics would disturb those of the batch normalisation.
            self.network.eval()
            losses = self.picture_losses(x)
            self.network.train()
            sum(losses.values(), torch.zeros((), device=self.device)).backward()
            figures |= {name: float(value.detach()) for name, value in losses.items()}
        training.average(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        return figures

    def picture_losses(self, x: Tensor) -> dict[str, Tensor]:
        """Weighted losses of real faces x (N, 3, S, S) in [0, 1]."""
        latent = self.network(self.backbone.maps(shrink(x)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            made = self.generator.synthesis(latent, self.preset.side).float()
            # At half the size LPIPS costs a fifth, and small faces are what is looked at.
            deep = self.lpips.distance(F.avg_pool2d(made, 2).clamp(0, 1), F.avg_pool2d(x, 2)).mean()
        one, other = (F.normalize(self.backbone(self.chip(p)), dim=1) for p in (made, x))
        pull = (latent - self.network.mean).square().mean() / self.spread
        return {
            "pixel": PIXEL * 4 * F.mse_loss(made, x),
            "perceptual": PERCEPTUAL * deep,
            "identity": IDENTITY * (1 - (one * other).sum(dim=1)).mean(),
            "pull": PULL * pull,
        }

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        self.network.eval()
        found = self.network([m[-HELD:].float().to(self.device) for m in self.maps])
        figures = {"held_latent": float(F.mse_loss(found, self.latents[-HELD:].float().to(self.device)) / self.spread)}
        if len(self.held):
            parts = [self.picture_losses(self.held[i : i + 8].to(self.device).float() / 255) for i in range(0, 16, 8)]
            figures |= {f"held_{name}": float(np.mean([float(p[name]) for p in parts])) for name in parts[0]}
        self.network.train()
        return figures

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


@torch.inference_mode()
def pairs(
    generator: MobileStyleGAN, backbone: MobileFaceNet, count: int, side: int, work: Path, at_once: int = 8
) -> tuple[Tensor, list[Tensor]]:
    """Latents (N, 23, 512) and the backbone's maps of their pictures, all fp16; kept in ``work``, since they take long.

    Truncation from 0.5 to 1; in half of them the rows below a random cut come from a second latent, so that the rows
    are told apart.
    """
    kept = work / "pairs.pt"
    if kept.exists():
        stored = torch.load(kept, weights_only=True)
        if len(stored["latents"]) == count:
            return stored["latents"], stored["maps"]
    device = next(generator.parameters()).device
    draw = torch.Generator().manual_seed(SEED)
    latents, maps = [], []
    for start in range(0, count, at_once):
        n = min(at_once, count - start)
        w = generator.mapping(torch.randn(2 * n, STYLE, generator=draw).to(device))
        psi = (0.5 + 0.5 * torch.rand(n, 1, 1, generator=draw)).to(device)
        cut = torch.randint(1, 2 * ROWS, (n, 1, 1), generator=draw).to(device)
        below = torch.arange(ROWS, device=device)[None, :, None] >= cut
        plus = torch.where(below, w[n:, None], w[:n, None])
        plus = generator.mean_latent + psi * (plus - generator.mean_latent)
        x = generator.synthesis(plus, side).clamp(0, 1)
        latents.append(plus.half().cpu())
        maps.append([m.half().cpu() for m in backbone.maps(shrink(x))])
    found = torch.cat(latents), [torch.cat(level) for level in zip(*maps, strict=True)]
    work.mkdir(parents=True, exist_ok=True)
    training.write({"latents": found[0], "maps": found[1]}, kept)
    return found


def _pixels(faces: Faces, side: int) -> Tensor:
    crops = faces.pixels()
    parts = [(pictures(crops[i : i + 64], side) * 255).round().to(torch.uint8) for i in range(0, len(crops), 64)]
    return torch.cat(parts)


def run(
    output: Path,
    data: list[Path],
    preset: str,
    work: Path | None,
    workers: int,
    every: int,
    cache: Path | None,
    models_folder: str | None,
    say: Callable[[str], None],
) -> None:
    """What the command does: train on generated faces and the real ones in ``data``; the test split's are left out."""
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: is none of {', '.join(PRESETS)}")
    found = [faces_of(folder, None, cache or CACHE, models_folder, say).of("steer", "judge") for folder in data]
    real = None
    if found:
        real = Faces(
            np.concatenate([f.name for f in found]),
            np.concatenate([f.subject for f in found]),
            [crop for f in found for crop in f.crop],
            np.concatenate([f.labels for f in found]),
        )
        say(f"real faces: {len(real)} of {len(set(real.subject.tolist()))} people")
    folder = work or output.with_suffix(".work")

    def make() -> EncoderTask:
        return EncoderTask(real, PRESETS[preset], folder)

    task = training.run(make, folder, every, workers, say)
    state = {name: value.detach().cpu() for name, value in task.network.state_dict().items()}
    state = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}
    about = {"kind": "encoder of mobilestylegan-ffhq", "preset": preset, **task.measure()}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(output), metadata={"facecrowd": json.dumps(about)})
    say(f"wrote {output}")
