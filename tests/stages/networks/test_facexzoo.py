"""The pickled networks of FaceX-Zoo are read without running what a pickle says; SFace and they know their weights."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from facecrowd.stages import models
from facecrowd.stages.networks import facexzoo
from facecrowd.stages.networks.facexzoo import FaceXZoo
from facecrowd.stages.networks.sface import SFace


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def saved(*objects: object) -> bytes:
    """As torch.save of before 1.6 begins a file: magic number, version, system, module, keys."""
    stream = io.BytesIO()
    for item in (facexzoo.MAGIC, 1001, {"little_endian": True}, *objects):
        pickle.dump(item, stream, protocol=2)
    return stream.getvalue()


@pytest.mark.parametrize(
    "function, arguments",
    [(os.system, ("touch {}",)), (builtins.eval, ("open('{}', 'w')",)), (subprocess.Popen, (["touch", "{}"],))],
)
def test_a_file_that_wants_code_run_is_refused_by_the_name_it_asks_for(function, arguments, tmp_path):
    mark = tmp_path / "ran"
    filled = [
        [word.format(mark) for word in given] if isinstance(given, list) else given.format(mark) for given in arguments
    ]
    file = tmp_path / "evil.pkl"
    file.write_bytes(saved(Calls(function, *filled), []))
    with pytest.raises(models.WrongWeights, match=rf"evil.pkl.*{function.__name__}, which is refused"):
        facexzoo.tensors(file)
    assert not mark.exists()


def test_only_the_listed_names_of_torch_are_known(tmp_path):
    file = tmp_path / "other.pkl"
    for name in (torch.load, torch.nn.Transformer):
        file.write_bytes(saved(name, []))
        with pytest.raises(models.WrongWeights, match="refused"):
            facexzoo.tensors(file)


def test_a_file_of_something_else_or_cut_short_is_refused(weights, tmp_path):
    whole = weights("facex-zoo-1").read_bytes()
    file = tmp_path / "facex.pkl"
    for data in (b"", b"not a pickle", pickle.dumps([1]), saved([], []), whole[:3000], whole[:-1000], whole[:120_000]):
        file.write_bytes(data)
        with pytest.raises(models.WrongWeights, match=r"facex\.pkl"):
            FaceXZoo.load(file)


@pytest.mark.parametrize("name", ["facex-zoo-1", "facex-zoo-2"])
def test_the_weights_are_whole(name, weights):
    """Numbers read from a wrong place of the file would be no variances, and no float32 of usual size."""
    network = FaceXZoo.load(weights(name))
    state = network.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all((value >= 0).all() for key, value in state.items() if key.endswith("running_var"))
    assert all(value.abs().max() < 100 for key, value in state.items() if key.endswith("conv.weight"))
    counters = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert len(counters) == 1
    assert counters.pop() > 1000
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_sface_computes_what_onnx_runtime_computes_from_the_published_file(weights):
    file = weights("sface")
    x = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(str(file), **models.session())
    theirs = np.concatenate([session.run(None, {"data": (row[None] * 255).numpy()})[0] for row in x])
    assert np.abs(SFace.load(file)(x).numpy() - theirs).max() < 1e-3


def test_another_file_is_no_sface(weights, tmp_path):
    (tmp_path / "text.onnx").write_bytes(b"not a network")
    for file in (weights("arcface-mobilefacenet"), tmp_path / "text.onnx"):
        with pytest.raises(models.WrongWeights, match=file.name):
            SFace.load(file)


@pytest.mark.parametrize("network", [SFace, FaceXZoo])
def test_recognisers_embed_only_the_size_they_were_trained_for(network):
    with pytest.raises(ValueError, match="112 x 112"):
        network()(torch.rand(1, 3, 128, 128))
