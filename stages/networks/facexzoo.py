"""The two MobileFaceNets of FaceX-Zoo, ``facex-zoo-1`` and ``facex-zoo-2``, as differentiable modules.

S. Chen, Y. Liu, X. Gao, Z. Han, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices", CCBR 2018 (arXiv:1804.07573), table 1, trained with the loss of X. Wang et al., "Mis-classified Vector Guided
Softmax Loss for Face Recognition", AAAI 2020, on MS1M; published with J. Wang et al., "FaceX-Zoo: A PyTorch Toolbox for
Face Recognition", 2021 (arXiv:2101.04407). Names of the modules are those of the published state.

The files are whole modules, pickled in PyTorch's format of before 1.6. A pickle can run any code, so nothing here loads
them: ``tensors`` reads the numbers out with an unpickler that knows no class but its own stand-ins.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from facecrowd.stages.models import WrongWeights

WIDTH = 512
MAGIC = 0x1950A86A20F9469CFC6C
"""Begins a file of torch.save of before 1.6."""

_STORAGES = {"FloatStorage": torch.float32, "LongStorage": torch.int64}
_LAYERS = {
    "torch": {"device"},
    "torch.nn.backends.thnn": {"_get_thnn_function_backend"},
    "torch.nn.parallel.data_parallel": {"DataParallel"},
    "torch.nn.modules.container": {"Sequential"},
    "torch.nn.modules.conv": {"Conv2d"},
    "torch.nn.modules.batchnorm": {"BatchNorm1d", "BatchNorm2d"},
    "torch.nn.modules.activation": {"PReLU"},
    "torch.nn.modules.linear": {"Linear"},
    "models.network_def.mobilefacenet_def": {
        "MobileFaceNet",
        "Conv_block",
        "Linear_block",
        "Depth_Wise",
        "Residual",
        "Flatten",
    },
}


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, linear: bool = False
) -> nn.Sequential:
    """Convolution, batch norm and, unless linear, PReLU. A kernel of 7 takes a whole 7 x 7 map together."""
    padding = 1 if kernel == 3 else 0
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if not linear:
        layers["prelu"] = nn.PReLU(outputs)
    return nn.Sequential(layers)


class Block(nn.Module):
    """Expand, filter each channel, project linearly; adds its input at stride 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = stride == 1
        self.conv = convolution(inputs, hidden, 1, 1, 1)
        self.conv_dw = convolution(hidden, hidden, 3, stride, hidden)
        self.project = convolution(hidden, outputs, 1, 1, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.residual else y


class FaceXZoo(nn.Module):
    """``forward`` embeds aligned faces."""

    SIZE = 112

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(3, 64, 3, 2, 1)
        self.conv2_dw = convolution(64, 64, 3, 1, 64)
        self.conv_23 = Block(64, 128, 64, stride=2)
        self.conv_3 = nn.Sequential(*(Block(64, 128, 64) for _ in range(4)))
        self.conv_34 = Block(64, 256, 128, stride=2)
        self.conv_4 = nn.Sequential(*(Block(128, 256, 128) for _ in range(6)))
        self.conv_45 = Block(128, 512, 128, stride=2)
        self.conv_5 = nn.Sequential(*(Block(128, 256, 128) for _ in range(2)))
        self.conv_6_sep = convolution(128, 512, 1, 1, 1)
        self.conv_6_dw = convolution(512, 512, 7, 1, 512, linear=True)
        self.linear = nn.Linear(512, WIDTH, bias=False)
        self.bn = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of aligned faces, not normalised.

        x : (N, 3, 112, 112) RGB in [0, 1]; the network itself takes BGR

        Returns (N, 512). Raises ``ValueError`` for another size.
        """
        if x.shape[-2:] != (self.SIZE, self.SIZE):
            raise ValueError(f"FaceX-Zoo's networks embed {self.SIZE} x {self.SIZE} pixels, not {tuple(x.shape)}")
        x = (x.flip(1) * 255 - 127.5) / 128
        x = self.conv_3(self.conv_23(self.conv2_dw(self.conv1(x))))
        x = self.conv_5(self.conv_45(self.conv_4(self.conv_34(x))))
        out: Tensor = self.bn(self.linear(self.conv_6_dw(self.conv_6_sep(x)).flatten(1)))
        return out

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network of ``face_recognition_mv.pkl``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        stored = {
            name.removeprefix("module.").replace(".model.", "."): tensor for name, tensor in tensors(path).items()
        }
        try:
            network.load_state_dict(stored)
        except RuntimeError as error:
            raise WrongWeights(f"{os.fspath(path)} holds no MobileFaceNet of FaceX-Zoo: {error}") from error
        return network


class _Module:
    """Stands in for everything a module is made of: it only keeps what the pickle puts into it."""

    def __init__(self, *_: object) -> None:
        pass


class _View(NamedTuple):
    """A tensor whose numbers come later in the file."""

    storage: tuple[str, torch.dtype]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: tuple[str, torch.dtype], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _View:
    return _View(storage, offset, size, stride)


def _rebuild_parameter(data: _View, *_: object) -> _View:
    return data


class _Reader(pickle.Unpickler):
    """Knows tensors, ordered dictionaries and stand-ins; any other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if name in _LAYERS.get(module, ()):
            return _Module
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")

    def persistent_load(self, pid: Any) -> Any:
        kind, *about = pid
        if kind == "module":
            return about[0]
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is refused")
        dtype, key = about[:2]
        return key, dtype


def tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters and buffers of a pickled module by name, without running anything that the file says.

    Raises ``WrongWeights`` where the file asks for any other class than those of a MobileFaceNet, or is damaged.
    """
    try:
        with open(path, "rb") as stream:
            if _Reader(stream).load() != MAGIC:
                raise pickle.UnpicklingError("it is no file of torch.save of before 1.6")
            _Reader(stream).load(), _Reader(stream).load()
            root, keys = _Reader(stream).load(), _Reader(stream).load()
            views = dict(_views(root, ""))
            dtypes = dict(view.storage for view in views.values())
            storages = {key: _storage(stream, dtypes[key]) for key in keys}
        return {
            name: torch.as_strided(storages[view.storage[0]], view.size, view.stride, view.offset).clone()
            for name, view in views.items()
        }
    # Damaged bytes make the unpickler raise whatever it stumbled over.
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise WrongWeights(f"{os.fspath(path)} holds no MobileFaceNet of FaceX-Zoo: {error}") from error


def _views(module: Any, prefix: str) -> Iterator[tuple[str, _View]]:
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError(f"{prefix or 'it'} is no module")
    for part in ("_parameters", "_buffers"):
        for name, value in vars(module)[part].items():
            if isinstance(value, _View):
                yield prefix + name, value
    for name, child in vars(module)["_modules"].items():
        yield from _views(child, f"{prefix}{name}.")


def _storage(stream: IO[bytes], dtype: torch.dtype) -> Tensor:
    """One storage: how many numbers, in 8 bytes, then the numbers, all little-endian."""
    count = int.from_bytes(stream.read(8), "little")
    data = bytearray(stream.read(count * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype, count=count)
