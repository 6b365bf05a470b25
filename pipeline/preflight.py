"""What can be known before a release begins and is not the input: models, room on disk, and the cluster."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facecrowd.pipeline import attributes, ray_data
from facecrowd.pipeline.config import Compute, Detect, ReleaseConfig
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.photos import Photo
from facecrowd.pipeline.storage import Folder
from facecrowd.stages import models

WORKED = 60_000
"""Bytes in the workspace for each photo: its crop and its rendered face."""
RELEASED = 30_000
"""Bytes in the release for each photo: a face."""


def model_hashes(config: Detect, download: bool = True) -> dict[str, str]:
    """SHA-256 of the detector's and the recogniser's file, each of a kind that does its task.

    Models that are missing are fetched; without ``download`` their hash is empty. Raises ModelError.
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
        hashes[role] = models.sha256(file)
    return hashes


def models_line(config: Detect, hashes: dict[str, str]) -> str:
    """What a dry run says of the models."""
    names = {"detector": config.detector, "recogniser": config.recogniser}
    missing = [names[role] for role, digest in hashes.items() if not digest]
    said = f"models: {config.detector} and {config.recogniser}, "
    return said + (f"not here yet and fetched first: {', '.join(missing)}" if missing else "hashes checked")


@dataclass(frozen=True)
class Network:
    """A network that renders, as it was found. ``sha256`` is empty where it has to be fetched first."""

    name: str
    purpose: str
    sha256: str
    licence: str


SHIPPED_TERMS = f"facecrowd's own; made with MobileStyleGAN (FFHQ), for {models.NON_COMMERCIAL}"
"""Of encoder, directions and image heads."""


def renderer(config: ReleaseConfig, download: bool = True) -> tuple[Network, ...]:
    """The networks that render a release; nothing for methods without. Those that are missing are fetched.

    Raises ModelError for what is missing, is not what its name says, or does not fit the rest.
    """
    method, folder = config.method, config.detect.models
    if not method.neural:
        return ()
    translator = _translator(config, download) if method.translated else ()
    if not method.generated:
        return translator
    # Only these methods spend the seconds that their networks take to import.
    from facecrowd.stages import edits
    from facecrowd.stages.networks import encoder, mobilestylegan

    found = [*translator, _fetched("mobilestylegan-ffhq", "generator", folder, download)]
    if mobilestylegan.SHIPPED_HEADS.exists():
        found.append(_shipped(mobilestylegan.SHIPPED_HEADS, "image heads of the generator"))
    if not method.of_class:
        found.append(_fetched("lpips-vgg16", "loss of the latent search", folder, download))
    if method.of_class or method.translated or (method.name == "deepblur" and method.start == "encoder"):
        if not encoder.SHIPPED.is_file():
            raise models.ModelError(
                f"the encoder's weights ({encoder.SHIPPED.name}) are not installed; train them: facecrowd train encoder"
            )
        found.append(_shipped(encoder.SHIPPED, "encoder of faces"))
        found.append(_fetched(encoder.BACKBONE, "backbone of the encoder", folder, download))
        if download:
            encoder.Encoder.load(encoder.SHIPPED, folder)
    if method.of_class or method.translated:
        edits.Directions.load(edits.SHIPPED_DIRECTIONS)
        found.append(_shipped(edits.SHIPPED_DIRECTIONS, "attribute directions of the generator"))
    if method.of_class:
        found += _steering(config, download)
    return tuple(found)


SURROGATE = "recogniser that faces are perturbed against"
FOOLED = "attribute predictor that faces are perturbed against"


def perturber(config: ReleaseConfig, download: bool = True) -> tuple[Network, ...]:
    """The networks behind a perturbation; nothing where there is none. Those that are missing are fetched.

    Raises ModelError, ConfigError for one that passes no gradient.
    """
    perturb, folder = config.perturb, config.detect.models
    if not perturb.on:
        return ()
    found = [_surrogate(name, folder, download) for name in perturb.surrogates]
    if perturb.name == "tip-im":
        found.append(_fetched("mobilestylegan-ffhq", "generator of the perturbation's targets", folder, download))
    if perturb.attributes:
        from facecrowd.stages.attributes import Card

        name = steering(config)
        if Card.read(name).base is not None:
            raise ConfigError(
                f"perturb.attributes: {name} is a forest, which passes no gradient; name another predictor"
            )
        found += [Network(**row) for row in attributes.find(name, folder, download).rows(FOOLED)]
    return tuple(found)


def _surrogate(name: str, folder: str | None, download: bool) -> Network:
    """A recogniser with a gradient. Raises ModelError, and ConfigError for another."""
    from facecrowd.stages.recognise import NETWORKS

    digest = ""
    try:
        digest = models.sha256(
            models.resolve(os.path.expanduser(name), "recognition", folder=folder, download=download)
        )
    except models.Unobtainable:
        if download or name not in NETWORKS:
            raise
    if digest and digest not in [models.MODELS[known].sha256 for known in NETWORKS]:
        raise ConfigError(
            f"perturb.surrogates: no gradient passes through {name}, so nothing can be made against it; those that "
            f"have one: {', '.join(NETWORKS)}"
        )
    shown = name if name in models.MODELS else f"the user's own ({os.path.basename(name)})"
    return Network(shown, SURROGATE, digest, models.licence_of(name, digest))


STEERING = "attribute predictor of the renderer"
TRANSLATOR = "translator of attributes"
TRANSLATOR_TERMS = (
    f"facecrowd's own; trained on research photos and on faces of MobileStyleGAN (FFHQ), for {models.NON_COMMERCIAL}"
)


def _steering(config: ReleaseConfig, download: bool) -> list[Network]:
    predictor = attributes.find(steering(config), config.detect.models, download)
    return [Network(**row) for row in predictor.rows(STEERING)]


def _translator(config: ReleaseConfig, download: bool) -> tuple[Network, ...]:
    """What translates, by what it is steered, and what finds the regions. Raises ModelError."""
    from facecrowd.stages.networks import stargan
    from facecrowd.stages.translate import LATENT, SHIPPED

    method, folder, found = config.method, config.detect.models, []
    name = str(method.translator)
    _able(config)
    if name != LATENT:
        file = _weights(name)
        stargan.Generator.load(file)  # what is no translator is found before any work
        shipped = name in SHIPPED
        shown = name if shipped else f"the user's own ({file.name})"
        terms = TRANSLATOR_TERMS if shipped else "as the user has it"
        found.append(Network(shown, TRANSLATOR, models.sha256(file), terms))
    if method.keeps_identity:
        found.append(_fetched("arcface-mobilefacenet", "recogniser of the regions", folder, download))
        found.append(_fetched("landmarks-2d106", "landmarks of the regions", folder, download))
    return (*found, *_steering(config, download))


def _able(config: ReleaseConfig) -> None:
    """Refuse a translator that cannot do what the method is for: faces would be released as they were.

    Raises ConfigError, ModelError.
    """
    from facecrowd.stages import regions

    able = set(translatable(config))
    if config.method.keeps_identity:
        parts = [name for part, name in regions.PARTS.items() if part not in regions.SPARED]
        if missing := [name for name in parts if name not in able]:
            raise ConfigError(
                f"method.translator: it cannot change {', '.join(missing)}, which identity-preserving turns round; "
                "name one that can"
            )
    elif not able & set(names := config.policy.quasi_identifiers):
        raise ConfigError(
            f"method.translator: it can change none of the quasi-identifiers ({', '.join(names)}), "
            f"so every face would be released as it is; it can change: {', '.join(sorted(able))}"
        )


def untranslatable(config: ReleaseConfig) -> tuple[str, ...]:
    """The quasi-identifiers that a translation releases and its translator cannot show. Raises ModelError."""
    if config.method.name != "translation":
        return ()
    able = translatable(config)
    return tuple(name for name in config.policy.quasi_identifiers if name not in able)


def _weights(translator: str) -> Path:
    """The file of a StarGAN, shipped or the user's. Raises ModelError."""
    from facecrowd.stages.networks import stargan
    from facecrowd.stages.translate import LATENT, SHIPPED

    file = stargan.locate(os.path.expanduser(translator))
    if translator in SHIPPED and not file.is_file():
        raise models.ModelError(
            f"the translator's weights ({file.name}) are not installed; train them: facecrowd train stargan"
        )
    if not file.is_file():
        raise models.ModelError(
            f"no translator is called {translator}; there are: {', '.join((*SHIPPED, LATENT))}, or a file"
        )
    return file


def translatable(config: ReleaseConfig) -> tuple[str, ...]:
    """The attributes that the method's translator can change. Raises ModelError."""
    from facecrowd.stages import edits
    from facecrowd.stages.attributes import ATTRIBUTES
    from facecrowd.stages.networks import stargan
    from facecrowd.stages.translate import LATENT

    if config.method.translator == LATENT:
        known = edits.Directions.load(edits.SHIPPED_DIRECTIONS).names
        return tuple(name for name in ATTRIBUTES if name in known)
    return stargan.Generator.load(_weights(str(config.method.translator))).shape.attributes


def steering(config: ReleaseConfig) -> str:
    """The predictor by which the attributes of surrogates are realised: that of the originals, never the judge."""
    from facecrowd.stages.attributes import STEER

    named = config.attributes.predictor
    return STEER if named in ("auto", "none") else named


VERIFIERS = ("sface", "edgeface-s", "facex-zoo-2", "facex-zoo-1", "arcface-mobilefacenet")
"""Who recognises what was rendered where nobody is named: the first that took no part and is at hand."""


def verifier(config: ReleaseConfig, networks: Sequence[Network]) -> str:
    """The recogniser by which released faces are held against a tolerance: none that embedded, rendered or was
    perturbed against. Raises ConfigError.
    """
    folder, asked = config.detect.models, config.verify.recogniser
    own = models.sha256(models.resolve(config.detect.recogniser, "recognition", folder=folder))
    took_part = {own, *(network.sha256 for network in networks)}

    def independent(name: str) -> bool:
        return models.sha256(models.resolve(name, "recognition", folder=folder)) not in took_part

    if asked is not None:
        if not independent(asked):
            raise ConfigError(f"verify.recogniser {asked}: takes part in making the faces, so it cannot verify them")
        return asked
    for name in VERIFIERS:
        if models.at_hand(name, "recognition", folder) and independent(name):
            return name
    raise ConfigError(
        f"verify.recognition: no recogniser is at hand that takes no part in making the faces; fetch one "
        f"(facecrowd models pull {VERIFIERS[0]}) or name one, verify.recogniser"
    )


def judged_by_another(
    networks: Sequence[Network], judge: attributes.Predictor | None, translator: str | None = None
) -> None:
    """Refuse a judge that rendered or perturbed what it would judge, or shares weights or people with what did.

    A predictor of the user's own steers the rendering only where it predicts too, and is compared there. A translator
    is what it learned from: the people of its splits, and the predictor that labelled them.

    Raises ConfigError.
    """
    if judge is not None and translator is not None:
        _judged_by_no_teacher(judge, translator)
    for network in networks:
        if judge is None or network.purpose not in (STEERING, FOOLED):
            continue
        from facecrowd.stages.attributes import SHIPPED

        if network.name in SHIPPED:
            does = "steers the rendering" if network.purpose == STEERING else "the perturbation fools"
            attributes.independent(judge, network.name, f"the predictor that {does}")


def _judged_by_no_teacher(judge: attributes.Predictor, translator: str) -> None:
    from facecrowd.stages.attributes import SHIPPED, Card
    from facecrowd.stages.networks import stargan
    from facecrowd.stages.translate import LATENT

    if translator == LATENT:  # it has no weights of its own
        return
    about = stargan.Generator.load(_weights(translator)).about
    for labeller in SHIPPED:
        if labeller in str(about.get("labels", "")):
            attributes.independent(judge, labeller, "the predictor that labelled what the translator learned from")
    for teacher in about.get("teachers") or ():
        attributes.independent(judge, str(teacher), "a predictor that taught the translator")
    people = {split for card in Card.read(judge.file).line() for split in card.splits}
    if common := sorted(people & set(about.get("splits", ()))):
        raise ConfigError(
            f"attributes.judge: {judge.name} is not independent of the translator: both learned from people of "
            f"{', '.join(common)}; name another, or none"
        )


def _fetched(name: str, purpose: str, folder: str | None, download: bool) -> Network:
    digest = ""
    try:
        digest = models.sha256(models.path(name, folder=folder, download=download))
    except models.Unobtainable:
        if download:
            raise
    return Network(name, purpose, digest, models.model(name).licence)


def _shipped(file: Path, purpose: str) -> Network:
    return Network(file.stem, purpose, models.sha256(file), SHIPPED_TERMS)


def graphics(config: Compute) -> None:
    """Refuse GPUs that this machine lacks; of a cluster it is not known here. Raises ConfigError."""
    if not config.gpus_per_worker or config.address != "local":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"compute.gpus_per_worker {config.gpus_per_worker:g}: there is no GPU here that torch can use; leave it out"
        )


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
