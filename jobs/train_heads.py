"""``facecrowd train heads``: image heads on the generator's intermediate features, so that small pictures cost less.

The published network has one head, for 1024 x 1024. A head on the features at 128 (64) pixels, one inverse wavelet away
from a picture of 256 (128), is made against the area-down-sampled full picture of the same latent: first a linear
convolution by least squares, then a small modulated network for what is left, by gradient. The generator is fixed, so
only the pictures of some hundred random latents are needed, each made once.
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
from facecrowd.stages.networks.mobilestylegan import CHANNELS, FULL, ROWS, STYLE, MobileStyleGAN, SmallHead, haar

SIZES = (256,)
SEED = 20261120
HELD = 16
PATCH = 32
"""Side of the feature patches that a step looks at, in feature pixels."""
PIXELS = 1024
"""Feature pixels of each picture that the least squares see."""


class HeadTask:
    """The head for ``size`` px on ``count`` random latents; 16 more are held out. ``work`` keeps their pictures."""

    def __init__(
        self, generator: Path, size: int, count: int, steps: int, work: Path, batch: int = 8, rate: float = 1e-3
    ) -> None:
        self.size, self.steps, self.batch = size, steps, batch
        self.device = training.device()
        told = [models.sha256(generator), size, count, steps, batch, rate, SEED]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        network = MobileStyleGAN.load(generator, heads=None).to(self.device)
        latents, pictures = examples(network, count + HELD, work)
        self.pictures = F.avg_pool2d(pictures.float(), SIZES[0] // size).half()
        self.styles = latents[:, -1]
        with torch.no_grad():
            made = [network.features(w[None].to(self.device), size // 2).half().cpu() for w in latents]
        self.features = torch.cat(made)
        torch.manual_seed(SEED)
        self.head = SmallHead(CHANNELS[(size // 8).bit_length() - 1]).to(self.device)
        with torch.no_grad():
            weight, bias = least_squares(self.features[:-HELD], self.pictures[:-HELD])
            self.head.linear.weight.copy_(weight)
            self.head.linear.bias.copy_(bias)  # type: ignore[union-attr]
            # The features are not of order one; what is learned starts as nothing beside the linear part.
            scale = self.features[:HELD].float().square().mean((0, 2, 3)).sqrt().clamp(min=1e-3)
            self.head.mix.weight /= scale[:, None, None]
            self.head.modulation.style.bias.fill_(1.0)
            for layer in (self.head.modulation.style, self.head.gain, self.head.paint):
                layer.weight.zero_()
            for layer in (self.head.gain, self.head.paint):
                layer.bias.zero_()  # type: ignore[union-attr]
        linear = list(self.head.linear.parameters())
        others = [p for n, p in self.head.named_parameters() if not n.startswith("linear.")]
        groups = [{"params": others, "base": rate}, {"params": linear, "base": rate / 100}]
        self.optimiser = torch.optim.Adam(groups, rate, betas=(0.9, 0.99))

    def step(self, number: int) -> dict[str, float]:
        draw = training.generator(SEED, number)
        rows = training.share(torch.randint(len(self.styles) - HELD, (self.batch,), generator=draw))
        top, left = (int(v) for v in torch.randint(self.size // 2 - PATCH + 1, (2,), generator=draw))
        x = self.features[rows, :, top : top + PATCH, left : left + PATCH].to(self.device).float()
        wanted = self.pictures[rows, :, 2 * top : 2 * (top + PATCH), 2 * left : 2 * (left + PATCH)]
        for group in self.optimiser.param_groups:
            at = number / self.steps
            group["lr"] = group["base"] * min(1.0, (number + 1) / 100) * 0.5 * (1 + math.cos(math.pi * at))
        self.optimiser.zero_grad(set_to_none=True)
        loss = F.mse_loss(self.head(x, self.styles[rows].to(self.device)), wanted.to(self.device).float())
        loss.backward()
        training.average(self.head.parameters())
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimiser.step()
        return {"loss": float(loss.detach())}

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        made = [
            self.head(self.features[i : i + 1].to(self.device).float(), self.styles[i : i + 1].to(self.device)).cpu()
            for i in range(len(self.styles) - HELD, len(self.styles))
        ]
        error = (torch.cat(made).clamp(-1, 1) - self.pictures[-HELD:].float().clamp(-1, 1)) / 2
        return {f"psnr_{self.size}": -10 * math.log10(float(error.square().mean()))}

    def state(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])


@torch.no_grad()
def examples(generator: MobileStyleGAN, count: int, work: Path) -> tuple[Tensor, Tensor]:
    """Latents (N, 23, 512) and their pictures (N, 3, 256, 256), about [-1, 1], fp16, from the full network.

    Truncation from 0.4 to 1; half the latents are mixed from two at a random row.
    """
    draw = torch.Generator().manual_seed(SEED)
    latents = []
    for _ in range(count):
        psi = 0.4 + 0.6 * float(torch.rand(1, generator=draw))
        w = generator.mapping(torch.randn(2, STYLE, generator=draw).to(generator.mean_latent.device))
        one, other = generator.truncate(w[:1], psi), generator.truncate(w[1:], psi)
        cut = int(torch.randint(1, 2 * ROWS, (1,), generator=draw))
        latents.append(torch.cat([one[:, :cut], other[:, cut:]], dim=1))
    kept = work / "pictures.pt"
    if kept.exists():
        stored: Tensor = torch.load(kept, weights_only=True)["pictures"]
        if len(stored) == count:
            return torch.cat(latents).cpu(), stored
    full = [F.avg_pool2d(2 * generator.synthesis(w, FULL) - 1, FULL // SIZES[0]).half().cpu() for w in latents]
    work.mkdir(parents=True, exist_ok=True)
    training.write({"pictures": torch.cat(full)}, kept)
    return torch.cat(latents).cpu(), torch.cat(full)


def least_squares(features: Tensor, pictures: Tensor, ridge: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The 3 x 3 convolution (12, C, 3, 3) and bias (12,) that come nearest to the pictures' wavelets."""
    draw = torch.Generator().manual_seed(SEED)
    size = 9 * features.shape[1] + 1
    gram, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 12, dtype=torch.float64)
    for x, y in zip(features, pictures, strict=True):
        at = torch.randperm(x.shape[1] * x.shape[2], generator=draw)[:PIXELS]
        rows = F.unfold(x[None].float(), 3, padding=1)[0][:, at]
        rows = torch.cat([rows, torch.ones(1, len(at))])
        gram += (rows @ rows.T).double()
        right += (rows @ haar(y[None].float())[0].flatten(1)[:, at].T).double()
    solved = torch.linalg.solve(gram + ridge * gram.trace() / size * torch.eye(size), right).float()
    return solved[:-1].T.reshape(12, -1, 3, 3), solved[-1]


def run(output: Path, count: int, steps: int, work: Path | None, say: Callable[[str], None]) -> dict[str, float]:
    """Make and write the heads as fp16 safetensors; gives their PSNR against the down-sampled full picture, in dB."""
    generator = models.path("mobilestylegan-ffhq")
    folder = work or output.with_suffix(".work")
    state: dict[str, Tensor] = {}
    figures: dict[str, float] = {}
    for size in SIZES:
        task = training.train(
            lambda size=size: HeadTask(generator, size, count, steps, folder),  # type: ignore[misc]
            folder / str(size),
            every=250,
            say=say,
        )
        figures |= task.measure()
        state |= {f"heads.{size}.{k}": v.detach().cpu().half().contiguous() for k, v in task.head.state_dict().items()}
    about = {"kind": "heads of mobilestylegan-ffhq", "generator_sha256": models.sha256(generator), **figures}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(output), metadata={"facecrowd": json.dumps(about)})
    say(f"wrote {output}")
    return figures
