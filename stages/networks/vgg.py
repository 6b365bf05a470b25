"""VGG16 and AlexNet as LPIPS uses them: deep features of a picture, and the perceptual distance of two.

Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018,
version 0.1 of the linear heads. With y, y0 the feature maps of two pictures, each position scaled to length 1 over its
channels (equation 1):

    d(x, x0) = sum over layers l of  mean over positions h, w of  |w_l * (y_l,hw - y0_l,hw)|^2

where the published heads hold w_l squared. Backbones: Simonyan and Zisserman, ICLR 2015 (VGG16); Krizhevsky, 2014
(AlexNet), both trained on ImageNet.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from facecrowd.stages.models import ModelError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, in [0, 1]: the scaling layer of LPIPS (shift and scale for [-1, 1]), written for this range."""

EPSILON = 1e-10
"""Added to the length of a position's features, as published."""


class Lpips(nn.Module):
    """A frozen backbone and its five heads. Gradients reach the pictures, never the weights.

    ``features`` serves as a perceptual loss too: five maps at falling resolution, of which the first ``depth`` can be
    had without computing the rest. VGG16 takes sides from 16 pixels on, AlexNet from 31.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: list[nn.Sequential], heads: list[Tensor]) -> None:
        """``blocks`` end in the five maps; ``heads`` are their channels' weights, (C,) each, none negative."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ParameterList(heads)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path | str) -> Lpips:
        """The network of a published file (``lpips-vgg16`` or ``lpips-alexnet`` in the registry), on the CPU.

        Raises ``ModelError`` for a file that is neither, or that holds anything but arrays.
        """
        with open(path, "rb") as stream:
            try:
                tree = _Arrays(stream).load()
                name = next(key for key in ("VGG16_0", "AlexNet_0") if key in tree)
                state = _state(tree, name)
            except (pickle.UnpicklingError, EOFError, StopIteration, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{path} does not hold the weights of LPIPS: {error or 'no backbone'}") from error
        # Weights that are replaced at once need not be drawn first.
        with torch.device("meta"):
            blocks = _vgg16() if name == "VGG16_0" else _alexnet()
        convolutions = [layer for block in blocks for layer in block if isinstance(layer, nn.Conv2d)]
        heads = state.pop("heads")
        try:
            for convolution, weight, bias in zip(convolutions, state["weights"], state["biases"], strict=True):
                convolution.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{path} does not hold the weights of LPIPS: {error}") from error
        return cls(blocks, heads)

    def features(self, x: Tensor, depth: int = 5) -> tuple[Tensor, ...]:
        """The first ``depth`` maps of ``x`` (N, 3, H, W), RGB in [0, 1].

        VGG16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 with 64, 128, 256, 512, 512 channels at 1, 1/2, 1/4, 1/8 and
        1/16 of the side. AlexNet: relu1 to relu5 with 64, 192, 384, 256, 256.
        """
        maps = []
        x = (x - self.mean) / self.std
        for block in list(self.blocks)[:depth]:
            x = block(x)
            maps.append(x)
        return tuple(maps)

    def compare(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        """LPIPS of two results of ``features``: (N,), summed over the maps they hold, 0 for equal pictures.

        A search towards a fixed picture computes that picture's maps once.
        """
        total = torch.zeros((), device=a[0].device)
        for head, one, other in zip(self.heads, a, b, strict=False):
            difference = (_unit(one) - _unit(other)).square()
            total = total + torch.einsum("nchw,c->nhw", difference, head.to(difference.dtype)).mean((1, 2))
        return total

    def distance(self, x: Tensor, y: Tensor, depth: int = 5) -> Tensor:
        """LPIPS of pictures (N, 3, H, W), RGB in [0, 1]: (N,). The published measure takes all five maps."""
        return self.compare(self.features(x, depth), self.features(y, depth))


def _unit(features: Tensor) -> Tensor:
    # vector_norm has gradient 0 where all channels are 0; the square root of a sum has none, and gives NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)


def _vgg16() -> list[nn.Sequential]:
    blocks: list[nn.Sequential] = []
    inputs = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if blocks else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        blocks.append(nn.Sequential(*layers))
    return blocks


def _alexnet() -> list[nn.Sequential]:
    return [
        nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True)),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


class _Arrays(pickle.Unpickler):
    """Reads a pickle of nested dictionaries of NumPy arrays, and refuses to import anything else."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        # The name of this function moved between NumPy 1 and 2; an array tells where it is.
        reconstruct = np.empty(0).__reduce__()[0]
        self._known = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read") from None


def _state(tree: dict[str, Any], backbone: str) -> dict[str, list[Tensor]]:
    """Tensors in torch's order from Flax's: kernels are (H, W, in, out) there."""
    count = len(tree[backbone])
    kernels = [tree[backbone][f"Conv_{i}"]["kernel"] for i in range(count)]
    return {
        "weights": [torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))) for kernel in kernels],
        "biases": [torch.from_numpy(tree[backbone][f"Conv_{i}"]["bias"]) for i in range(count)],
        "heads": [torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)) for i in range(5)],
    }
