"""``facecrowd train heads``: image heads on the generator's intermediate features, so that small pictures cost less.

The published network has one head, for 1024 x 1024. A head on the features at 128 (64) pixels, one inverse wavelet away
from a picture of 256 (128), is trained against the area-down-sampled full picture of the same latent. The features are
fixed, so only the pictures of some hundred random latents are needed, each made once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.stages import models
from facecrowd.stages.networks.mobilestylegan import CHANNELS, FULL, STYLE, MobileStyleGAN, SmallHead

SIZES = (256, 128)
SEED = 20261120
HELD = 16
PATCH = 32
"""Side of the feature patches that a step looks at, in feature pixels."""


class HeadsTask:
    """Both heads at once on ``pictures`` random latents; the last 16 are held out."""

    def __init__(self, generator: Path, pictures: int, steps: int, batch: int = 16, rate: float = 3e-3) -> None:
        self.steps, self.batch, self.base = steps, batch, rate
        self.device = training.device()
        told = [models.sha256(generator), pictures, steps, batch, rate, SEED]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        self.examples = examples(MobileStyleGAN.load(generator, heads=None).to(self.device), pictures + HELD)
        torch.manual_seed(SEED)
        self.heads = torch.nn.ModuleDict({str(s): SmallHead(CHANNELS[(s // 8).bit_length() - 1]) for s in SIZES})
        self.heads.to(self.device)
        self.optimiser = torch.optim.AdamW(self.heads.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def step(self, number: int) -> dict[str, float]:
        draw = training.generator(SEED, number)
        at = number / self.steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.base * min(1.0, (number + 1) / 50) * 0.5 * (1 + math.cos(math.pi * at))
        self.optimiser.zero_grad(set_to_none=True)
        figures = {}
        for size, (features, pictures, styles) in self.examples.items():
            rows = torch.randint(len(styles) - HELD, (self.batch,), generator=draw)
            top, left = (int(v) for v in torch.randint(size // 2 - PATCH + 1, (2,), generator=draw))
            x = features[rows, :, top : top + PATCH, left : left + PATCH].float()
            wanted = pictures[rows, :, 2 * top : 2 * (top + PATCH), 2 * left : 2 * (left + PATCH)].float()
            made = self.heads[str(size)](x, styles[rows])
            loss = F.l1_loss(made, wanted) + F.mse_loss(made, wanted)
            loss.backward()
            figures[f"loss_{size}"] = float(loss.detach())
        training.average(self.heads.parameters())
        self.optimiser.step()
        return figures

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        found = {}
        for size, (features, pictures, styles) in self.examples.items():
            made = self.heads[str(size)](features[-HELD:].float(), styles[-HELD:])
            error = F.mse_loss(made.clamp(-1, 1), pictures[-HELD:].float().clamp(-1, 1)) / 4
            found[f"psnr_{size}"] = -10 * math.log10(float(error))
        return found

    def state(self) -> dict[str, Any]:
        return {"heads": self.heads.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])


@torch.inference_mode()
def examples(generator: MobileStyleGAN, count: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """For each size: features (N, C, size/2, size/2) fp16, pictures (N, 3, size, size) fp16 in about [-1, 1], styles.

    Latents of all truncations from 0.3 to 1, half of them mixed from two at a random row.
    """
    draw = torch.Generator().manual_seed(SEED)
    device = next(generator.parameters()).device
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {size: [] for size in SIZES}
    for i in range(count):
        psi = 0.3 + 0.7 * float(torch.rand(1, generator=draw))
        one, other = (
            generator.truncate(w[None], psi)
            for w in generator.mapping(torch.randn(2, STYLE, generator=draw).to(device))
        )
        cut = int(torch.randint(1, 23, (1,), generator=draw)) if i % 2 else 23
        w = torch.cat([one[:, :cut], other[:, cut:]], dim=1)
        x = generator.first(generator.constant, w[:, 0])
        kept = {}
        for k, block in enumerate(generator.blocks):
            x = block(x, w[:, 1 + 3 * k : 4 + 3 * k])
            kept[16 << k] = x
        full = generator.heads[str(FULL)](x, w[:, -1])
        for size in SIZES:
            found[size].append((kept[size].half(), F.avg_pool2d(full, FULL // size).half(), w[:, -1]))
    return {size: tuple(torch.cat(part) for part in zip(*rows, strict=True)) for size, rows in found.items()}  # type: ignore[misc]


def run(output: Path, pictures: int, steps: int, work: Path | None, say: Callable[[str], None]) -> dict[str, float]:
    """Train and write the heads as fp16 safetensors; gives their PSNR against the down-sampled full picture, in dB."""
    generator = models.path("mobilestylegan-ffhq")
    task = training.train(
        lambda: HeadsTask(generator, pictures, steps), work or output.with_suffix(".work"), every=100, say=say
    )
    assert isinstance(task, HeadsTask)
    figures = task.measure()
    state = {
        f"heads.{name}": value.detach().cpu().half().contiguous() for name, value in task.heads.state_dict().items()
    }
    about = {"kind": "heads of mobilestylegan-ffhq", "generator_sha256": models.sha256(generator), **figures}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(output), metadata={"facecrowd": json.dumps(about)})
    say(f"wrote {output}")
    return figures
