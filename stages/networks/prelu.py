"""PReLU of frozen networks, for whoever asks a recogniser for the gradient at the faces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Slopes(torch.autograd.Function):
    """PReLU of fixed slopes. PyTorch's own also works out the slopes' gradient, half of a backward pass on a CPU."""

    @staticmethod
    def forward(context: Any, x: Tensor, slopes: Tensor) -> Tensor:
        context.save_for_backward(F.prelu((x > 0).to(x.dtype).mul_(2).sub_(1), -slopes))
        return F.prelu(x, slopes)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.saved_tensors[0], None


class FixedPReLU(nn.Module):
    """A frozen ``nn.PReLU``: the same values and the same gradient."""

    def __init__(self, layer: nn.PReLU) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return _Slopes.apply(x, self.weight) if torch.is_grad_enabled() else F.prelu(x, self.weight)


def fix_slopes(network: nn.Module) -> None:
    """Puts ``FixedPReLU`` in the place of every frozen PReLU of a network."""
    for name, layer in network.named_children():
        if isinstance(layer, nn.PReLU) and not layer.weight.requires_grad:
            setattr(network, name, FixedPReLU(layer))
        else:
            fix_slopes(layer)
