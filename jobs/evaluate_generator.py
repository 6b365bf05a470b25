"""``facecrowd evaluate generator``: how well the generator shows real faces, and how well its surrogates hide people.

Each part runs where it is asked for, and is printed with what its figures mean:

    inversion          the encoder alone and after some search steps, on people the encoder never saw
    optimisers         L-BFGS, Adam, AdaGrad and SGD with momentum (Li and Choi, DeepBlur, CVPRW 2021, figure 7)
    re-identification  of k-same surrogates, by every recogniser, from originals and from released faces
    FID                of surrogates, against real crops and against the generator's own samples
    edits              whether an attribute can be changed (``jobs/train_directions.py`` measures it)
    speed              seconds and memory per face, by method and batch

What takes long is kept in a work folder, chunk by chunk, under a hash of all that it depends on: a killed evaluation
goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.jobs.labelled import QUALITY, Faces
from facecrowd.jobs.renditions import (
    KEY,
    SIDE,
    STEER,
    WORK,
    Networks,
    Say,
    altered,
    by_chunk,
    crowds,
    embeddings,
    encoded,
    files,
    inverted,
    kept,
    known,
    spread,
    surrogates,
)
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.privacy.measure import figure
from facecrowd.privacy.reidentification import identify
from facecrowd.stages import deepblur, edits, inpaint, inversion, models, quality, surrogate
from facecrowd.stages.attributes import ATTRIBUTES, Predictor
from facecrowd.stages.attributes import STEER as STEER_PREDICTOR
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE

RECOGNISERS = (STEER, "sface", "facex-zoo-1", "facex-zoo-2", "edgeface-s")
UNSEEN = ("sface", STEER)
"""Identity after inversion: by a recogniser that no loss has seen, and by the encoder's own."""

MEASURES = ("lpips", "ssim", "ms_ssim", "psnr")
RESAMPLES = 2000
STEPS = 10
"""Of the latent search where a method is compared or timed."""


@dataclass(frozen=True)
class Order:
    """What to measure. A count of 0, or no step, k or batch, leaves that part out.

    faces : test faces to invert, as many people as there are; search : steps, 0 the encoder alone
    size : of the pictures that a search compares, 128 or 256
    optimisers : faces searched with each optimiser; optimiser_steps : how far
    reidentify : values of k; variants : faces drawn per class, 0 for the class mean itself
    compare : test faces altered one by one, for the same attack; altered : by which methods
    fid : surrogates, and as many pictures on the other side
    edits : faces edited per attribute; speed : batches to time
    """

    faces: int = 32
    search: tuple[int, ...] = (0, 10, 30, 100)
    size: inversion.Size = 128
    optimisers: int = 0
    optimiser_steps: int = 50
    reidentify: tuple[int, ...] = ()
    recognisers: tuple[str, ...] = RECOGNISERS
    variants: int = 0
    compare: int = 0
    altered: tuple[str, ...] = ("reconstruction", "deepblur:0.5", "deepblur:1", "inpaint", "inpaint:average")
    fid: int = 0
    edits: int = 0
    speed: tuple[int, ...] = ()
    work: Path = WORK

    def __post_init__(self) -> None:
        if self.size not in (128, 256):
            raise ConfigError(f"--size {self.size}: a search compares pictures at 128 or 256")
        for method in self.altered:
            known(method)
        for flag, values, least in (("search", self.search, 0), ("reidentify", self.reidentify, 2)):
            if any(value < least for value in values):
                raise ConfigError(f"--{flag}: {min(values)} is below {least}")


# --------------------------------------------------------------------------------------------------------- inversion


def interval(values: np.ndarray, subject: np.ndarray) -> dict[str, float | None]:
    """The mean over subjects of their means, with a 95 % bootstrap interval over subjects."""
    people, person = np.unique(subject, return_inverse=True)
    mean = np.bincount(person, weights=values) / np.bincount(person)
    draws = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLES)
    low, high = np.quantile(draws @ mean / len(people), (0.025, 0.975))
    return {"mean": figure(mean.mean()), "low": figure(low), "high": figure(high)}


def inversion_figures(networks: Networks, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """How close the generator comes to faces of test people. Raises InputError where there are none."""
    test = faces.of("test")
    if not len(test):
        raise InputError("no face of a test subject among these; give more people")
    chosen = spread(test, order.faces)
    told = [networks.told, order.size]
    original = embeddings(networks, chosen.crop, UNSEEN, order.work)
    mean = networks.generator.mean_latent.cpu().expand(len(chosen), ROWS, STYLE)
    rows = []
    for steps in (None, *order.search):
        if steps is None:
            found = None
            latent, name = mean, "average face"
        else:
            say(f"inversion: {len(chosen)} faces, {steps} steps")
            found = inverted(networks, chosen.crop, steps, order.size, order.work)
            latent, name = found.latent, f"{steps} steps" if steps else "encoder"
        made = networks.render(latent)
        values = compared(networks, chosen.crop, made, [told, name], order.work)
        shown = embeddings(networks, files(made), UNSEEN, order.work)
        row: dict[str, Any] = {"from": name, "steps": steps}
        row |= {measure: interval(values[measure], chosen.subject) for measure in MEASURES}
        row["identity"] = {
            recogniser: interval((original[recogniser] * shown[recogniser]).sum(1), chosen.subject)
            for recogniser in UNSEEN
        }
        row["detected"] = float(shown["detected"].mean())
        if found is not None:
            row["seconds_per_face"] = float(found.seconds.mean())
            row["converged"] = float(found.converged.mean())
            row["steps_taken"] = float(found.taken.mean())
        rows.append(row)
    return {
        "faces": len(chosen),
        "subjects": len(set(chosen.subject.tolist())),
        "searched_at": order.size,
        "compared_at": SIDE,
        "identity_scale": identity_scale(networks, test, chosen, original, order.work),
        "rows": rows,
    }


def compared(
    networks: Networks, crops: Sequence[bytes], made: Tensor, told: object, work: Path
) -> dict[str, np.ndarray]:
    """LPIPS (VGG16), SSIM, MS-SSIM and PSNR of crops and pictures (N, 3, 256, 256): (N,) each."""
    place = {hashlib.sha256(crop).digest(): i for i, crop in enumerate(crops)}

    @torch.no_grad()
    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        x = networks.pixels(some)
        y = made[[place[hashlib.sha256(crop).digest()] for crop in some]].to(x)
        found = {
            "lpips": quality.lpips(networks.lpips, x, y),
            "ssim": quality.ssim(x, y),
            "ms_ssim": quality.ms_ssim(x, y),
            "psnr": quality.psnr(x, y),
        }
        return {name: value.double().cpu().numpy() for name, value in found.items()}

    return by_chunk(crops, work, "compared", told, make, 4)


def identity_scale(
    networks: Networks, faces: Faces, chosen: Faces, original: dict[str, np.ndarray], work: Path
) -> dict[str, dict[str, float | None]]:
    """By recogniser the mean cosine of a face to another photo of its person, and to the other people's faces."""
    seen = set(chosen.name.tolist())
    others = spread(faces.take(np.array([name not in seen for name in faces.name.tolist()])), len(faces))
    first = {str(person): i for i, person in reversed(list(enumerate(others.subject.tolist())))}
    rows = [i for i, person in enumerate(chosen.subject.tolist()) if person in first]
    again = (
        embeddings(networks, [others.crop[first[str(chosen.subject[i])]] for i in rows], UNSEEN, work) if rows else {}
    )
    apart = chosen.subject[:, None] != chosen.subject[None]
    scale: dict[str, dict[str, float | None]] = {}
    for name in UNSEEN:
        cosines = original[name] @ original[name].T
        scale[name] = {
            "same person": float((original[name][rows] * again[name]).sum(1).mean()) if rows else None,
            "other people": float(cosines[apart].mean()) if apart.any() else None,
        }
    return scale


# -------------------------------------------------------------------------------------------------------- optimisers


def optimiser_figures(networks: Networks, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """The search loss of every optimiser from the average face and from the encoder's guess, by step and by second."""
    test = faces.of("test")
    chosen = spread(test if len(test) else faces, order.optimisers)
    rows = []
    for start in ("average face", "encoder"):
        for optimiser in inversion.OPTIMISERS:
            say(f"optimisers: {optimiser} from the {start}")

            def make(start: str = start, optimiser: inversion.Optimiser = optimiser) -> dict[str, np.ndarray]:
                x, space = networks.pixels(chosen.crop), networks.searching.space
                with torch.no_grad():
                    latent = networks.encoder(x) if start == "encoder" else None
                found = inversion.search(
                    networks.generator,
                    networks.lpips,
                    x,
                    start=latent,
                    steps=order.optimiser_steps,
                    size=order.size,
                    optimiser=optimiser,
                    tolerance=0,
                    space=space,
                    half=networks.half,
                )
                return {"loss": found.loss.numpy(), "seconds": found.seconds.numpy()}

            names = [hashlib.sha256(crop).hexdigest() for crop in chosen.crop]
            told = [*networks.told, names, start, optimiser, order.optimiser_steps, order.size, networks.device.type]
            found = kept(order.work, "optimiser", told, make)
            loss = found["loss"].mean(axis=1)
            rows.append(
                {
                    "start": start,
                    "optimiser": optimiser,
                    "loss": [figure(value) for value in loss],
                    "seconds_per_face": (found["seconds"] / len(chosen)).tolist(),
                }
            )
    return {"faces": len(chosen), "size": order.size, "rows": rows}


def can_plot() -> None:
    """Raises ConfigError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot-folder needs matplotlib: pip install 'facecrowd[plots]'")


def plot(found: dict[str, Any], folder: Path) -> Path:
    """The curves of ``optimiser_figures`` as a PNG: a row per start; loss against steps and against seconds."""
    from matplotlib.figure import Figure

    starts = list(dict.fromkeys(row["start"] for row in found["rows"]))
    picture = Figure(figsize=(10, 3.6 * len(starts)), layout="constrained")
    panels = picture.subplots(len(starts), 2, squeeze=False)
    for row in found["rows"]:
        left, right = panels[starts.index(row["start"])]
        loss = [np.nan if value is None else value for value in row["loss"]]
        left.plot(range(len(loss)), loss, label=row["optimiser"])
        right.plot(row["seconds_per_face"], loss, label=row["optimiser"])
    for start, (left, right) in zip(starts, panels, strict=True):
        left.set(title=f"from the {start}", xlabel="steps (evaluations of loss and gradient)", ylabel="loss")
        right.set(title=f"from the {start}", xlabel="seconds per face")
        right.legend()
    folder.mkdir(parents=True, exist_ok=True)
    picture.savefig(folder / "optimisers.png", dpi=120)
    return folder / "optimisers.png"


# ------------------------------------------------------------------------------------------------- re-identification


def reidentify_figures(networks: Networks, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """Rank-1 identification of k-same surrogates, and of the originals beside them, by each recogniser.

    The galleries are those of ``pipeline/audit.py``: all originals; the originals without the face's own source (T1 of
    DeepBlur); the other released faces under their true names (T3).
    """
    original = embeddings(networks, faces.crop, [*order.recognisers], order.work, say)
    steer = embeddings(networks, faces.crop, [STEER], order.work)[STEER]
    latents = encoded(networks, faces.crop, order.work, say)
    own = np.arange(len(faces))
    rows: list[dict[str, Any]] = []
    for name in order.recognisers:
        rows.append(
            {"method": "originals", "k": 1, "recogniser": name}
            | attack("other originals", original[name], faces.subject, original[name], faces.subject, own)
        )
    shown: list[dict[str, Any]] = []
    for k in order.reidentify:
        by = crowds(faces.subject, steer, k)
        say(f"re-identification: k = {k}, {by.classes} classes of {len(by.people)} people")
        released = surrogates(networks, faces, latents, by, order.variants, order.work)
        made = embeddings(networks, released.images, order.recognisers, order.work)
        shown.append(
            {
                "k": k,
                "classes": by.classes,
                "largest": int(np.bincount(by.ids).max()),
                "distinct_faces": len(set(released.images)),
                "detected": float(made["detected"].mean()),
            }
        )
        for name in order.recognisers:
            rows += attacks(original[name], made[name][released.of], faces.subject, k, name)
    for method in order.altered if order.compare else ():
        say(f"re-identification: {method}")
        rows += altered_attacks(networks, faces, original, method, order)
    return {
        "faces": len(faces),
        "subjects": len(set(faces.subject.tolist())),
        "subjects_of_training_splits": len(set(faces.of("steer", "judge").subject.tolist())),
        "variants": order.variants,
        "k": shown,
        "rows": rows,
    }


def altered_attacks(
    networks: Networks, faces: Faces, original: dict[str, np.ndarray], method: str, order: Order
) -> list[dict[str, Any]]:
    """What is left of a person where each face is altered by itself: named from the other originals (T1)."""
    test = faces.of("test")
    chosen = spread(test if len(test) else faces, order.compare)
    place = {name: i for i, name in enumerate(zip(faces.subject.tolist(), faces.name.tolist(), strict=True))}
    own = np.array([place[name] for name in zip(chosen.subject.tolist(), chosen.name.tolist(), strict=True)])
    shown = files(altered(networks, chosen.crop, method, STEPS, order.size, order.work))
    made = embeddings(networks, shown, order.recognisers, order.work)
    return [
        {"method": method, "k": 1, "recogniser": name}
        | attack("other originals", made[name], chosen.subject, original[name], faces.subject, own)
        for name in order.recognisers
    ]


def attacks(
    original: np.ndarray, released: np.ndarray, subject: np.ndarray, k: int, recogniser: str
) -> list[dict[str, Any]]:
    """Released faces named from three galleries, beside 1/k. original, released : (N, D), row by row of one source."""
    own = np.arange(len(subject))
    galleries = (
        ("originals", original, None),
        ("other originals", original, own),
        ("released", released, own),
    )
    rows = []
    for gallery, enrolled, exclude in galleries:
        row: dict[str, Any] = {"method": "k-same", "k": k, "recogniser": recogniser}
        row |= attack(gallery, released, subject, enrolled, subject, exclude)
        rows.append(row | {"at_most": 1 / k, "held": row["low"] is None or bool(row["low"] <= 1 / k)})
    return rows


def attack(
    gallery: str,
    probe: np.ndarray,
    subject: np.ndarray,
    enrolled: np.ndarray,
    names: np.ndarray,
    exclude: np.ndarray | None,
) -> dict[str, Any]:
    """Rank 1 per subject with its 95 % interval; None where nobody has a gallery face left."""
    try:
        found = identify(probe, subject, enrolled, names, rng=KEY.generator("evaluate", gallery), exclude=exclude)
    except ValueError as error:
        return {"gallery": gallery, "rank1": None, "low": None, "high": None, "not_measured": str(error)}
    rate = found.rates[1]
    return {
        "gallery": gallery,
        "rank1": rate.per_subject,
        "low": rate.low,
        "high": rate.high,
        "chance": found.chance[1],
        "probes": found.probes,
        "subjects": found.subjects,
        "gallery_subjects": found.gallery_subjects,
    }


# --------------------------------------------------------------------------------------------------------------- FID

SEED = 20261123


def fid_figures(networks: Networks, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """FID of surrogates, of reconstructions' source and of the generator's samples, of equal counts on both sides."""
    k = min(order.reidentify, default=5)
    count = min(order.fid, len(faces) // 2)
    steer = embeddings(networks, faces.crop, [STEER], order.work, say)[STEER]
    by = crowds(faces.subject, steer, k)
    variants = order.variants
    if by.classes * max(1, variants) < count and edits.SHIPPED_DIRECTIONS.is_file():
        variants = -(-count // by.classes)
    made = surrogates(networks, faces, encoded(networks, faces.crop, order.work, say), by, variants, order.work)
    count = min(count, len(made.images))
    if count < 2:
        raise InputError("FID needs two pictures on each side; give more people, or a smaller k")
    real = spread(faces, 2 * count).crop
    z = torch.randn(2 * count, STYLE, generator=training.generator(SEED, 0)).to(networks.device)
    with torch.no_grad():
        w = networks.generator.mapping(z)[:, None].expand(-1, ROWS, -1).cpu()
    say(f"FID: {count} pictures on each side")

    def features(crops: Sequence[bytes]) -> np.ndarray:
        def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            return {"inception": networks.inception.features(networks.pixels(some)).cpu().numpy()}

        return by_chunk(crops, order.work, "inception", "inception-fid", make, 32, say)["inception"]

    def render() -> dict[str, np.ndarray]:
        return {"images": (networks.render(w) * 255).round().byte().permute(0, 2, 3, 1).numpy()}

    drawn = kept(order.work, "samples", [*networks.told, SEED, 2 * count], render)["images"]
    samples = [encode(image, QUALITY) for image in drawn]
    # Every n-th of the images, so that all classes are among them.
    chosen = np.linspace(0, len(made.images) - 1, count).round().astype(int)
    sets = {
        "surrogates": features([made.images[i] for i in chosen]),
        "real crops": features(real[:count]),
        "other real crops": features(real[count:]),
        "generator samples": features(samples[:count]),
        "other generator samples": features(samples[count:]),
    }
    pairs = (
        ("surrogates", "real crops"),
        ("surrogates", "generator samples"),
        ("generator samples", "real crops"),
        ("real crops", "other real crops"),
        ("generator samples", "other generator samples"),
    )
    rows = [
        {"of": a, "against": b, "fid": quality.fid(sets[a], sets[b]), "pictures": [len(sets[a]), len(sets[b])]}
        for a, b in pairs
    ]
    return {"k": k, "classes": by.classes, "variants": variants, "truncation_of_samples": 1.0, "rows": rows}


# ------------------------------------------------------------------------------------------------------------- edits


def edit_figures(networks: Networks, order: Order, say: Say) -> list[dict[str, Any]]:
    """By attribute, how often it can be flipped in fresh faces (``train_directions.measure``)."""
    from facecrowd.jobs.train_directions import measure

    digest = models.sha256(edits.SHIPPED_DIRECTIONS) if edits.SHIPPED_DIRECTIONS.is_file() else ""
    rows = []
    for name in (n for n in networks.directions.names if n in ATTRIBUTES):

        def make(name: str = name) -> dict[str, np.ndarray]:
            (row,) = measure(networks.directions, [name], order.edits, folder=networks.folder, say=lambda line: None)
            return {key: np.array(value) for key, value in row.items()}

        say(f"edits: {name}")
        found = kept(order.work, "edit", [*networks.told, digest, name, order.edits], make)
        rows.append({key: value.item() for key, value in found.items()})
    return [{key: figure(v) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


# ------------------------------------------------------------------------------------------------------------- speed

ENOUGH_S = 2.0
SPEED_K = 5


def speed_figures(networks: Networks, faces: Faces, order: Order, say: Say) -> list[dict[str, Any]]:
    """Seconds per face and peak memory of every method, by batch, on the device of the networks."""
    rows = []
    for batch in order.speed:
        crops = spread(faces, batch).crop
        crops = (crops * -(-batch // len(crops)))[:batch]
        x = networks.pixels(crops)
        for name, work in methods(networks, x).items():
            say(f"speed: {name}, {batch} at once")
            seconds, memory = timed(work, networks.device)
            rows.append(
                {
                    "method": name,
                    "batch": batch,
                    "device": networks.device.type,
                    "threads": torch.get_num_threads(),
                    "seconds_per_face": seconds / batch,
                    "faces_per_second": batch / seconds,
                    "peak_mib": memory,
                }
            )
    return rows


def methods(networks: Networks, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed on a batch of pictures x (N, 3, 256, 256), by name. Networks are loaded before."""
    generator, encoder, searching, count = networks.generator, networks.encoder, networks.searching, len(x)
    with torch.no_grad():
        latent = encoder(x)
    crowd = torch.full((SPEED_K,), 1 / SPEED_K)

    def searched() -> Tensor:
        with torch.no_grad():
            start = encoder(x)
        return inversion.search(
            generator,
            networks.lpips,
            x,
            start=start,
            steps=STEPS,
            tolerance=0,
            space=searching.space,
            half=networks.half,
        ).latent

    @torch.no_grad()
    def k_same() -> Tensor:
        members = latent[torch.arange(count * SPEED_K) % count].unflatten(0, (count, SPEED_K))
        means = torch.stack([surrogate.class_mean(m, crowd.to(x.device)) for m in members])
        return generator.synthesis(means, SIDE)

    def blurred() -> Tensor:
        return networks.render(deepblur.low_pass(searched(), generator.mean_latent, 1.0).cpu())

    crops = list((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())

    def inpainted() -> np.ndarray:
        drawn = torch.stack([inpaint.draw(searching, KEY, str(i)) for i in range(count)])
        return inpaint.inpaint(searching, crops, drawn, STEPS, SIDE)[0]

    found: dict[str, Callable[[], Any]] = {
        "encode": torch.no_grad()(lambda: encoder(x)),
        "render at 128 px": torch.no_grad()(lambda: generator.synthesis(latent, 128)),
        "render at 256 px": torch.no_grad()(lambda: generator.synthesis(latent, SIDE)),
        f"k-same surrogate at 256 px (k = {SPEED_K}, members encoded)": k_same,
        f"deepblur (encoder, {STEPS} steps)": blurred,
        f"inpaint (drawn, {STEPS} steps)": inpainted,
    }
    if edits.SHIPPED_DIRECTIONS.is_file():
        predictor = Predictor.load(STEER_PREDICTOR, networks.folder, str(networks.device))
        found["edit: smiling or not"] = lambda: edits.realise(
            generator,
            predictor,
            networks.directions,
            latent,
            {"Smiling": [i % 2 == 0 for i in range(count)]},
            at_once=count if networks.half else 1,
        )
    return found


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """Seconds of one call, and the MiB that it took beyond what was held before; None where the system cannot tell.

    A call under two seconds is repeated, the first left out.
    """

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    before = _memory(device, reset=True)
    first = once()
    after = _memory(device)
    memory = None if before is None or after is None else after - before
    again: list[float] = []
    while first < ENOUGH_S and sum(again) < ENOUGH_S:
        again.append(once())
    return (sum(again) / len(again) if again else first), memory


def _memory(device: torch.device, reset: bool = False) -> float | None:
    """MiB in use now, with ``reset``, which starts a new peak; the peak since then, without."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device) / 2**20
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+)" if reset else r"VmHWM:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else None


# --------------------------------------------------------------------------------------------------------------- all


def evaluate(networks: Networks, faces: Faces, order: Order, say: Say = lambda line: None) -> dict[str, Any]:
    """The figures of every part that is asked for. Raises InputError or ConfigError before any work is done."""
    people = len(set(faces.subject.tolist()))
    if order.reidentify and max(order.reidentify) > people:
        raise InputError(f"--reidentify {max(order.reidentify)}: there are only {people} people")
    if order.fid and people < min(order.reidentify, default=5):
        raise InputError(f"--fid: surrogates need {min(order.reidentify, default=5)} people, and there are {people}")
    if order.variants or order.edits:
        _ = networks.directions  # raises where there are none
    parts: tuple[tuple[str, Any, Callable[[], Any]], ...] = (
        ("inversion", order.faces and order.search, lambda: inversion_figures(networks, faces, order, say)),
        ("optimisers", order.optimisers, lambda: optimiser_figures(networks, faces, order, say)),
        ("reidentification", order.reidentify, lambda: reidentify_figures(networks, faces, order, say)),
        ("fid", order.fid, lambda: fid_figures(networks, faces, order, say)),
        ("edits", order.edits, lambda: edit_figures(networks, order, say)),
        ("speed", order.speed, lambda: speed_figures(networks, faces, order, say)),
    )
    generator, heads, encoder = networks.told
    found: dict[str, Any] = {
        "faces": len(faces),
        "subjects": people,
        "device": networks.device.type,
        "weights": {"generator": generator, "heads": heads, "encoder": encoder},
    }
    return found | {name: work() for name, wanted, work in parts if wanted}


# ----------------------------------------------------------------------------------------------------------- to read


def show(found: dict[str, Any]) -> None:
    """Print the figures, and a sentence on what each means."""
    console = Console(width=160)
    parts: dict[str, Callable[[Console, Any], None]] = {
        "inversion": _show_inversion,
        "optimisers": _show_optimisers,
        "reidentification": _show_reidentification,
        "fid": _show_fid,
        "edits": _show_edits,
        "speed": _show_speed,
    }
    for name, print_part in parts.items():
        if name in found:
            print_part(console, found[name])


def _show_inversion(console: Console, found: dict[str, Any]) -> None:
    names = list(found["rows"][0]["identity"])
    table = Table(
        "from",
        "LPIPS ↓",
        "SSIM ↑",
        "MS-SSIM ↑",
        "PSNR ↑",
        *(f"cosine, {name} ↑" for name in names),
        "s/face",
        title=f"Inversion: {found['faces']} faces of {found['subjects']} people the encoder never saw, at 256 px",
    )
    for row in found["rows"]:
        cells = [_with_interval(row[measure], 3 if measure != "psnr" else 1) for measure in MEASURES]
        cells += [_with_interval(row["identity"][name], 2) for name in names]
        seconds = row.get("seconds_per_face")
        table.add_row(row["from"], *cells, "–" if seconds is None else f"{seconds:.2f}")
    console.print(table)
    scale = found["identity_scale"]
    told = "; ".join(
        f"{name}: {_number(scale[name]['same person'], 2)} with another photo of the same person, "
        f"{_number(scale[name]['other people'], 2)} with other people"
        for name in names
    )
    console.print(
        f"Brackets are 95 % intervals over people. Steps are searched at {found['searched_at']} px from the encoder's "
        f"latent. Cosines to read these by: {told}. {names[0]} was in no loss; {names[1]} was in the encoder's."
    )


def _show_optimisers(console: Console, found: dict[str, Any]) -> None:
    first = found["rows"][0]["loss"]
    marks = sorted({n for n in (0, 5, 10, 20, 30, 50, len(first) - 1) if n < len(first)})
    table = Table(
        "start",
        "optimiser",
        *(f"loss, step {n}" for n in marks),
        "s/face, all steps",
        title=f"Search by optimiser: mean of {found['faces']} faces at {found['size']} px",
    )
    for row in found["rows"]:
        losses = [_number(row["loss"][n], 4) for n in marks]
        table.add_row(row["start"], row["optimiser"], *losses, f"{row['seconds_per_face'][-1]:.2f}")
    console.print(table)
    console.print("A step is one evaluation of loss and gradient; what a line search rejects counts too.")


def _show_reidentification(console: Console, found: dict[str, Any]) -> None:
    table = Table(
        "method",
        "recogniser",
        "gallery",
        "rank 1",
        "at most",
        "held",
        "probes",
        title=f"Re-identification among {found['subjects']} people ({found['faces']} faces)",
    )
    for row in found["rows"]:
        bound = row.get("at_most")
        method = row["method"] + (f", k = {row['k']}" if row["k"] > 1 else "")
        rate = {"mean": row["rank1"], "low": row["low"], "high": row["high"]}
        held = "–" if bound is None else ("yes" if row["held"] else "NO")
        probes = str(row.get("probes", "–"))
        table.add_row(
            method,
            row["recogniser"],
            row["gallery"],
            _with_interval(rate, 3),
            "–" if bound is None else f"{bound:.3f}",
            held,
            probes,
        )
    console.print(table)
    faces = ", ".join(
        f"k = {row['k']}: {row['distinct_faces']} faces in {row['classes']} classes" for row in found["k"]
    )
    console.print(
        "Rank 1 is the share of a person's released faces that are named right, averaged over people, with its 95 % "
        "interval; it is held where the interval reaches down to 1/k. Galleries: 'originals' holds all original faces, "
        "'other originals' leaves out the one behind the probe (T1), 'released' the other released faces under their "
        "true names (T3). 'originals' as the method is what the recogniser does without any protection. "
        f"Distinct surrogates: {faces}. {found['subjects_of_training_splits']} of the people are of the splits that "
        "train the encoder."
    )


def _show_fid(console: Console, found: dict[str, Any]) -> None:
    table = Table("of", "against", "FID ↓", "pictures", title=f"FID, surrogates of k = {found['k']}")
    for row in found["rows"]:
        table.add_row(row["of"], row["against"], f"{row['fid']:.1f}", " / ".join(str(n) for n in row["pictures"]))
    console.print(table)
    console.print(
        "FID is biased upwards with few pictures (the papers take 50,000): the two lines of one kind against itself "
        "show by how much at these counts, and figures of other counts do not compare."
    )


def _show_edits(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(
        "attribute",
        "steering predictor agrees",
        "judge agrees",
        "judge could tell before",
        "others changed (judge)",
        "strength",
        title=f"One attribute flipped in each of {rows[0]['faces']} fresh faces",
    )
    for row in rows:
        cells = [_number(row[name], 2) for name in ("steer", "judge", "held", "others_judge", "strength")]
        table.add_row(row["attribute"], *cells)
    console.print(table)
    console.print(
        "Shares of faces; the judge had no part in the edit, and is asked where it saw the same value before. 'others "
        "changed' is the mean change of the other 39 attributes' probabilities."
    )


def _show_speed(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("method", "batch", "s/face", "faces/s", "peak MiB", title=f"Speed on {_machine(rows[0])}")
    for row in rows:
        table.add_row(
            row["method"],
            str(row["batch"]),
            f"{row['seconds_per_face']:.4f}",
            f"{row['faces_per_second']:.2f}",
            _number(row["peak_mib"], 0),
        )
    console.print(table)
    console.print(
        "Peak memory is what one batch takes beyond the networks. Networks and pictures are in memory already."
    )


def _machine(row: dict[str, Any]) -> str:
    return f"{row['threads']} CPU threads" if row["device"] == "cpu" else "one GPU"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(found: dict[str, float | None], digits: int) -> str:
    if found["mean"] is None:
        return "–"
    return f"{_number(found['mean'], digits)} [{_number(found['low'], digits)}, {_number(found['high'], digits)}]"
