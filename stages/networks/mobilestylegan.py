"""MobileStyleGAN: the face generator, 1024 x 1024, unconditional, small enough for a CPU.

S. Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity Image Synthesis", 2021
(arXiv:2104.04767). It is StyleGAN2 with images and up-sampling in the wavelet domain, depthwise-separable convolutions
and a demodulation that does not depend on the style, so the demodulated weights are constants.

    z (N, 512) -- mapping --> w (N, 512) -- one row per modulated layer --> w+ (N, 23, 512) -- synthesis --> image

The weights were published as OpenVINO IR files; ``convert`` turns them into the state dict of the modules below. They
were distilled from StyleGAN2 trained on FFHQ, and are for non-commercial research.

    python -m facecrowd.stages.networks.mobilestylegan IR_DIRECTORY mobilestylegan-ffhq.safetensors
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facecrowd.stages.networks import openvino

STYLE = 512
ROWS = 23
"""Rows of w+: the first convolution, then (up, conv1, conv2) of seven blocks, then the image head."""

CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64)
"""Feature channels at 4, 8, ..., 512 pixels."""

FULL = 1024
SIZES = (1024, 512, 256, 128)
SHIPPED_HEADS = Path(__file__).parents[1] / "weights" / "mobilestylegan-heads.safetensors"
SLOPE = 0.2
MEAN_DRAWS = 4096
MEAN_SEED = 20210721
METADATA = {
    "model": "MobileStyleGAN, FFHQ 1024 x 1024, unconditional",
    "source": "random-face==2021.7.21.1: random_face/data/{Mapping,Synthesis}Network.{xml,bin}",
    "paper": "Belousov 2021, arXiv:2104.04767",
    "terms": "non-commercial research (derived from StyleGAN2 weights and the FFHQ dataset)",
}


class WeightsError(ValueError):
    """The file does not hold the weights of this generator."""


class Mapping(nn.Module):
    """z to w: unit second moment, then eight linear layers with leaky activation and gain sqrt(2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(STYLE, STYLE) for _ in range(8))

    def forward(self, z: Tensor) -> Tensor:
        """(N, 512) standard normal to (N, 512)."""
        w = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), SLOPE) * math.sqrt(2)
        return w


class Modulation(nn.Module):
    """Scales every input channel by a number read linearly from the style."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.style = nn.Linear(STYLE, channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, C, H, W) and w (N, 512) to (N, C, H, W)."""
        return x * self.style(w)[:, :, None, None]


class StyledConvolution(nn.Module):
    """Modulation, convolution (depthwise and pointwise, or one full 3 x 3), fixed noise, bias, leaky activation."""

    def __init__(self, inputs: int, outputs: int, size: int, *, separable: bool = True) -> None:
        super().__init__()
        self.modulation = Modulation(inputs)
        if separable:
            self.depthwise: nn.Module = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
            self.mix = nn.Conv2d(inputs, outputs, 1)
        else:
            self.depthwise = nn.Identity()
            self.mix = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.register_buffer("noise", torch.zeros(1, 1, size, size))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, inputs, size, size) and w (N, 512) to (N, outputs, size, size)."""
        return F.leaky_relu(self.mix(self.depthwise(self.modulation(x, w))) + self.noise, SLOPE)


class Block(nn.Module):
    """One doubling of the resolution, with three rows of w+: up-sampling and two convolutions."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.up = Modulation(inputs)
        self.conv1 = StyledConvolution(inputs // 4, outputs, size)
        self.conv2 = StyledConvolution(outputs, outputs, size)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, inputs, size/2, size/2) and w (N, 3, 512) to (N, outputs, size, size)."""
        x = inverse_haar(self.up(x, w[:, 0]))
        return self.conv2(self.conv1(x, w[:, 1]), w[:, 2])


class Head(nn.Module):
    """Features at half the size to a picture: a modulated pointwise convolution, then one inverse wavelet."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.modulation = Modulation(inputs)
        self.mix = nn.Conv2d(inputs, 12, 1)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, inputs, size/2, size/2) and w (N, 512) to (N, 3, size, size), RGB, about [-1, 1]."""
        return inverse_haar(self.mix(self.modulation(x, w)))


class SmallHead(nn.Module):
    """Features at half the size to a picture where the published network has no head: made here (``train heads``)
    against the down-sampled full picture. A linear 3 x 3 convolution, solved by least squares, plus what a small
    modulated network adds to it.
    """

    WIDTH = 64

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(inputs, 12, 3, padding=1)
        self.modulation = Modulation(inputs)
        self.mix = nn.Conv2d(inputs, self.WIDTH, 1)
        self.spread = nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1)
        self.gain = nn.Linear(STYLE, self.WIDTH)
        self.paint = nn.Conv2d(self.WIDTH, 12, 3, padding=1)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, inputs, size/2, size/2) and w (N, 512) to (N, 3, size, size), RGB, about [-1, 1]."""
        more = F.leaky_relu(self.mix(self.modulation(x, w)), SLOPE)
        more = F.leaky_relu(self.spread(more), SLOPE) * (1 + self.gain(w)[:, :, None, None])
        return inverse_haar(self.linear(x) + self.paint(more))


class MobileStyleGAN(nn.Module):
    """The generator. ``heads`` maps a picture size to the head that makes it from features at half that size.

    The published weights have one head, for 1024. A size without a head of its own is the area-down-sampled picture of
    the next larger head; a head trained for a smaller size is picked up from the weights file by its name
    (``heads.256.*``), and the blocks above it are then not run.
    """

    mean_latent: Tensor

    def __init__(self, heads: tuple[int, ...] = (FULL,)) -> None:
        super().__init__()
        self.map = Mapping()
        self.constant = nn.Parameter(torch.zeros(1, CHANNELS[0], 4, 4))
        self.first = StyledConvolution(CHANNELS[0], CHANNELS[0], 4, separable=False)
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, 8 << i) for i, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS))
        )
        self.heads = nn.ModuleDict(
            {str(s): (Head if s == FULL else SmallHead)(CHANNELS[(s // 8).bit_length() - 1]) for s in heads}
        )
        self.register_buffer("mean_latent", torch.zeros(STYLE))

    @classmethod
    def load(cls, path: Path | str, heads: Path | str | None = SHIPPED_HEADS) -> MobileStyleGAN:
        """The generator with the weights of a converted file, frozen and in evaluation mode, on the CPU.

        heads : file of further heads; by default those for 256 and 128 that were trained here
        """
        state = _tensors(path) | (_tensors(heads) if heads is not None else {})
        sizes = sorted({int(name.split(".")[1]) for name in state if name.startswith("heads.")})
        network = cls(tuple(sizes))
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"{path} does not hold the weights of MobileStyleGAN: {error}") from error
        return network.requires_grad_(False).eval()

    def mapping(self, z: Tensor) -> Tensor:
        """z (N, 512), standard normal, to w (N, 512)."""
        return self.map(z)

    def truncate(self, w: Tensor, psi: float = 0.7) -> Tensor:
        """w (N, 512) drawn towards the mean latent, as w+ (N, 23, 512): mean + psi (w - mean) in every row."""
        return (self.mean_latent + psi * (w - self.mean_latent))[:, None].expand(-1, ROWS, -1)

    def features(self, w_plus: Tensor, size: int = 512) -> Tensor:
        """The features at ``size`` (4, 8, ..., 512): w+ (N, 23, 512) to (N, channels, size, size)."""
        x = self.first(self.constant.expand(len(w_plus), -1, -1, -1), w_plus[:, 0])
        for i, block in enumerate(self.blocks[: (size // 8).bit_length()]):
            x = block(x, w_plus[:, 1 + 3 * i : 4 + 3 * i])
        return x

    def synthesis(self, w_plus: Tensor, size: int = FULL) -> Tensor:
        """w+ (N, 23, 512) to RGB pictures (N, 3, size, size).

        White is 1 and black 0; the network overshoots by a little, and the values are not clamped, so that a gradient
        reaches the latent from every pixel. ``size`` is one of 1024, 512, 256, 128.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {SIZES}, not {size}")
        if w_plus.ndim != 3 or w_plus.shape[1:] != (ROWS, STYLE):
            raise ValueError(f"w+ must have the shape (N, {ROWS}, {STYLE}), not {tuple(w_plus.shape)}")
        made = min(int(s) for s in self.heads if int(s) >= size)
        image = self.heads[str(made)](self.features(w_plus, made // 2), w_plus[:, -1])
        if made != size:
            image = F.avg_pool2d(image, made // size)
        return (image + 1) / 2


def _tensors(path: Path | str) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def haar(x: Tensor) -> Tensor:
    """The orthonormal 2-D Haar transform, of which ``inverse_haar`` is the inverse: (N, C, 2H, 2W) to (N, 4C, H, W)."""
    one, two, three, four = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)
    details = torch.stack([one + two - three - four, one - two + three - four, one - two - three + four], dim=2)
    return torch.cat([one + two + three + four, details.flatten(1, 2)], dim=1) / 2


def inverse_haar(x: Tensor) -> Tensor:
    """The inverse of the orthonormal 2-D Haar transform: (N, 4C, H, W) to (N, C, 2H, 2W).

    The first C channels are the averages; channels C + 3c .. C + 3c + 2 are the details of channel c: down the rows,
    along the columns, and both. y[2i + p, 2j + q] = (a + (-1)^p v + (-1)^q h + (-1)^(p + q) d) / 2.
    """
    n, channels, height, width = x.shape
    a = x[:, : channels // 4]
    v, h, d = x[:, channels // 4 :].reshape(n, channels // 4, 3, height, width).unbind(2)
    top, bottom = a + v, a - v
    left, right = h + d, h - d
    return F.pixel_shuffle(
        torch.stack([top + left, top - left, bottom + right, bottom - right], dim=2).flatten(1, 2) / 2, 2
    )


def convert(directory: Path) -> dict[str, Tensor]:
    """The state dict of ``MobileStyleGAN`` from the published IR files in ``directory``.

    Reads ``MappingNetwork.{xml,bin}`` and ``SynthesisNetwork.{xml,bin}``. Scales that the graph applies to the
    modulations are folded into their weights; the mean latent is the mean w of 4096 draws of z from a fixed seed.
    """
    state = {f"map.{name}": value for name, value in _mapping(openvino.read(directory / "MappingNetwork.xml")).items()}
    graph = openvino.read(directory / "SynthesisNetwork.xml")
    state["constant"] = torch.from_numpy(graph.value("m.input.input"))
    state |= _styled(graph, "m.conv1", "first")
    for i in range(len(CHANNELS) - 1):
        state |= _modulation(graph, f"m.layers.{i}.up", f"blocks.{i}.up")
        state |= _styled(graph, f"m.layers.{i}.conv1", f"blocks.{i}.conv1")
        state |= _styled(graph, f"m.layers.{i}.conv2", f"blocks.{i}.conv2")
    head = f"m.layers.{len(CHANNELS) - 2}.to_img"
    state |= _modulation(graph, f"{head}.conv", f"heads.{FULL}.modulation")
    state[f"heads.{FULL}.mix.weight"] = torch.from_numpy(graph.value(f"{head}.conv.weight"))
    state[f"heads.{FULL}.mix.bias"] = torch.from_numpy(graph.value(f"{head}.bias")).flatten()

    network = MobileStyleGAN()
    network.load_state_dict(state | {"mean_latent": network.mean_latent})
    z = torch.randn(MEAN_DRAWS, STYLE, generator=torch.Generator().manual_seed(MEAN_SEED))
    with torch.no_grad():
        state["mean_latent"] = network.mapping(z).mean(dim=0)
    return {name: value.contiguous() for name, value in state.items()}


def save(state: dict[str, Tensor], path: Path) -> None:
    """Writes a state dict as safetensors, with where it came from and its terms in the file's header."""
    save_file(state, str(path), metadata=METADATA)


def _mapping(graph: openvino.Graph) -> dict[str, Tensor]:
    products = [node for node in graph.nodes.values() if node.kind == "MatMul"]
    state = {}
    for i, product in enumerate(products):
        bias = graph.inputs(graph.reader(product))[1]
        state[f"layers.{i}.weight"] = torch.from_numpy(graph.constant(graph.inputs(product)[1]))
        state[f"layers.{i}.bias"] = torch.from_numpy(graph.constant(bias)).flatten()
    return state


def _modulation(graph: openvino.Graph, source: str, target: str) -> dict[str, Tensor]:
    weight, bias = f"{source}.modulation.weight", f"{source}.modulation.bias"
    scaled = graph.inputs(graph.reader(graph.reader(graph.node(bias))), "Const")
    scale = float(graph.constant(scaled[0]).item()) if scaled else 1.0  # up-sampling has none
    return {
        f"{target}.style.weight": torch.from_numpy(graph.value(weight)) * scale,
        f"{target}.style.bias": torch.from_numpy(graph.value(bias)).flatten() * scale,
    }


def _styled(graph: openvino.Graph, source: str, target: str) -> dict[str, Tensor]:
    bias = graph.node(f"{source}.bias")
    (plus_noise,) = graph.inputs(graph.reader(bias), "Add")
    convolution, noise = graph.inputs(plus_noise)
    state = _modulation(graph, f"{source}.conv", f"{target}.modulation")
    state[f"{target}.mix.weight"] = torch.from_numpy(graph.constant(graph.inputs(convolution)[1]))
    state[f"{target}.mix.bias"] = torch.from_numpy(graph.constant(bias)).flatten()
    state[f"{target}.noise"] = torch.from_numpy(graph.constant(noise))
    if graph.inputs(convolution, "GroupConvolution"):
        depthwise = torch.from_numpy(graph.value(f"{source}.conv.weight_dw"))  # (C, 1, 1, 3, 3)
        state[f"{target}.depthwise.weight"] = depthwise.flatten(0, 1)
    return state


def main() -> None:
    """Converts a directory of IR files into one safetensors file."""
    parser = argparse.ArgumentParser(description="Convert the published MobileStyleGAN IR files to safetensors.")
    parser.add_argument("directory", type=Path, help="holds {Mapping,Synthesis}Network.{xml,bin}")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    arguments = parser.parse_args()
    save(convert(arguments.directory), arguments.output)


if __name__ == "__main__":
    main()
