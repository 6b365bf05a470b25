"""What can be known before a release begins and is not the input: models, room on disk, and the cluster."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from facecrowd.pipeline import ray_data
from facecrowd.pipeline.config import Compute, Detect, ReleaseConfig
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.photos import Photo
from facecrowd.pipeline.schema import EMBEDDING_SIZE
from facecrowd.pipeline.storage import Folder
from facecrowd.stages import models

WORKED = 60_000
"""Bytes in the workspace for each photo: its crop and its rendered face."""
RELEASED = 30_000
"""Bytes in the release for each photo: a face."""


def model_hashes(config: Detect, download: bool = True) -> dict[str, str]:
    """SHA-256 of the detector's and the recogniser's file, each of a kind that does its task.

    Models that are missing are fetched; without ``download`` their hash is empty. Raises ModelError, and ConfigError
    for a recogniser whose embeddings do not fit the manifests.
    """
    tasks: dict[str, tuple[str, models.Task]] = {
        "detector": (config.detector, "detection"),
        "recogniser": (config.recogniser, "recognition"),
    }
    hashes = {}
    for role, (name, task) in tasks.items():
        try:
            file = models.resolve(name, task, folder=config.models, download=download)
        except models.Unobtainable:
            if download:
                raise
            hashes[role] = ""
            continue
        models.check_task(file, task)
        if role == "recogniser" and models.embedding_width(file) not in (0, EMBEDDING_SIZE):
            width = models.embedding_width(file)
            raise ConfigError(
                f"detect.recogniser {name}: gives {width} numbers for a face; the manifests hold {EMBEDDING_SIZE}"
            )
        hashes[role] = models.sha256(file)
    return hashes


def models_line(config: Detect, hashes: dict[str, str]) -> str:
    """What a dry run says of the models."""
    names = {"detector": config.detector, "recogniser": config.recogniser}
    missing = [names[role] for role, digest in hashes.items() if not digest]
    said = f"models: {config.detector} and {config.recogniser}, "
    return said + (f"not here yet and fetched first: {', '.join(missing)}" if missing else "hashes checked")


def room(config: ReleaseConfig, photos: Sequence[Photo]) -> None:
    """Whether workspace and release can be written, and fit. Raises ConfigError.

    Whole photos are encoded into the workspace, copied into the release, and may grow a little: three times the input.
    """
    pixels = sum(max(0, photo.bytes) for photo in photos) if config.output == "photo" else 0
    need = {
        f"workspace {config.workspace_path}": (config.workspace_path, WORKED * len(photos) + 2 * pixels),
        f"output {config.release.path}": (str(config.release.path), pixels or RELEASED * len(photos)),
    }
    on_disk: dict[int, list[tuple[str, Path, int]]] = {}
    for where, (url, size) in need.items():
        local = Folder(url).local
        if local is None:
            continue
        # The release is moved to its place whole, so that its parent is written to.
        parents = local.absolute().parents if url == config.release.path else (local, *local.absolute().parents)
        parent = next((p for p in parents if p.exists()), Path("/"))
        if not parent.is_dir():
            raise ConfigError(f"{where}: {parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(f"{where}: {parent} is not writable")
        on_disk.setdefault(parent.stat().st_dev, []).append((where, parent, size))
    for places in on_disk.values():
        free, needed = shutil.disk_usage(places[0][1]).free, sum(size for _, _, size in places)
        if free < needed:
            names = " and ".join(where for where, _, _ in places)
            raise ConfigError(f"{names}: {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed")


def cluster(config: Compute) -> None:
    """Refuse a cluster that cannot be joined from here, as far as that shows at once. Raises ConfigError."""
    if config.address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ConfigError(f"compute.address {config.address}: needs Ray's client; install ray[client]")
    ray_data.answers(config.address)
