"""The FID network's file computes and nothing else; its input is resized and scaled as in the original graph."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from facecrowd.stages.models import WrongHash
from facecrowd.stages.networks.inception import SIDE, Inception, resize

pytestmark = pytest.mark.usefixtures("one_thread")

ARITHMETIC = {
    *("aten::avg_pool2d", "aten::batch_norm", "aten::cat", "aten::contiguous", "aten::conv2d", "aten::eq"),
    *("aten::max_pool2d", "aten::relu", "aten::reshape", "aten::size", "aten::to"),
    *("prim::Constant", "prim::GetAttr", "prim::If", "prim::ListConstruct", "prim::ListUnpack"),
    *("prim::RaiseException", "prim::dtype"),
}


@pytest.fixture(scope="module")
def file(weights: Callable[[str], Path]) -> Path:
    return weights("inception-fid")


@pytest.fixture(scope="module")
def network(file: Path) -> Inception:
    return Inception.load(folder=file.parent)


def kinds(block: torch.Graph | torch.Block) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from kinds(inner)


def test_the_published_program_holds_arithmetic_and_nothing_else(network: Inception) -> None:
    assert set(kinds(network.network.inlined_graph)) <= ARITHMETIC


def test_the_published_archive_names_no_foreign_class_and_runs_nothing_when_it_is_read(file: Path) -> None:
    tensors = {"torch._utils _rebuild_tensor_v2", "torch FloatStorage"}
    containers = {"collections OrderedDict", "torch.jit._pickle build_intlist"}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            content = archive.read(name) if name.endswith((".pkl", ".py")) else b""
            if name.endswith(".pkl"):
                named = {str(arg) for op, arg, _ in pickletools.genops(content) if op.name == "GLOBAL"}
                assert all(one.startswith("__torch__.") for one in named - tensors - containers)
                assert not any("STACK_GLOBAL" in op.name for op, _, _ in pickletools.genops(content))
            assert b"__setstate__" not in content


def test_a_file_that_is_not_the_published_one_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACECROWD_MODELS", str(tmp_path / "cache"))
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "inception_fid.pt"))
    with pytest.raises(WrongHash):
        Inception.load(folder=tmp_path)


@pytest.mark.parametrize("height, width", [(64, 64), (256, 256), (299, 299), (512, 300)])
def test_resizing_samples_where_tensorflow_1_did(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    # Position i * H / side of the input, as the sampling grid of a published port says it, edges repeated.
    move = torch.tensor([[1, 0, 1 / width - 1 / SIDE], [0, 1, 1 / height - 1 / SIDE]], dtype=torch.float64)
    grid = functional.affine_grid(move.expand(2, -1, -1), [2, 3, SIDE, SIDE], align_corners=False)
    expected = functional.grid_sample(x, grid, "bilinear", "border", align_corners=False)
    torch.testing.assert_close(resize(x), expected)


def test_features_are_those_of_levels_less_128_over_128(network: Inception) -> None:
    levels = torch.randint(0, 256, (2, 3, SIDE, SIDE)).float()
    with torch.no_grad():
        expected = network.network((levels - 128) / 128)
    features = network.features(levels / 255)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_a_picture_has_the_same_features_alone_and_in_company(network: Inception) -> None:
    x = torch.rand(3, 3, 80, 64)
    torch.testing.assert_close(network.features(x)[1:2], network.features(x[1:2]), rtol=1e-4, atol=1e-4)
