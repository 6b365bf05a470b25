"""``facecrowd evaluate perturbation``: do masked faces lead recognisers astray, and what does it cost their look?

    masks      TIP-IM in its paper's protocol: each of P protected people has one probe, which is masked; the gallery
               holds their other photos, pictures of the targets, and other people. By surrogate and recogniser how
               often a target is among the N best gallery pictures (Rank-N-T), and how often the person is not
               (Rank-N-UT); PSNR, SSIM and MMD. Tables 2 to 4, figure 4 and the number of targets (appendix D)
    universal  one vector for all: how often recognisers and attribute predictors decide otherwise, by its bound, on
               faces it was made of and on others, against noise as strong
    speed      pictures a second of both stages, by batch

Everything is measured on the decoded file that a release would hold, never on what the optimiser left. Recognisers that
served a mask (white-box, *) stand beside those that did not; the latter include another family in ONNX Runtime.
What takes long is kept in a work folder, chunk by chunk: a killed evaluation goes on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from facecrowd.jobs.evaluate_generator import interval
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import KEY, SIDE, WORK, Networks, Say, by_chunk, chips, embeddings, kept, spread
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.privacy.measure import figure
from facecrowd.stages import edits, quality, recognise, tipim
from facecrowd.stages.align import ARCFACE_SIZE
from facecrowd.stages.attributes import JUDGE, Predictor
from facecrowd.stages.attributes import STEER as STEER_PREDICTOR
from facecrowd.stages.channel import Channel
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.mobilestylegan import STYLE
from facecrowd.stages.universal import Form, Gallery, Perturbation, Target, Traits, Universal, fit, noise

RECOGNISERS = (*recognise.NETWORKS, "edgeface-s")
"""Those with a gradient, and one of another family without."""

PARTS = ("masks", "counts", "universal", "speed")
RANKS = (1, 5)
RATES = ("rank_1_t", "rank_5_t", "rank_1_ut", "rank_5_ut")
FILE_QUALITY = 92
"""Of a release's JPEG files, by default."""

BASELINES = ("advnoise", "single", "rand", "G1", "G2")
NAMES = {
    "none": "original",
    "advnoise": "AdvNoise",
    "single": "Single-Target",
    "rand": "TIP-IM-Rand",
    "G1": "TIP-IM-G1",
    "G2": "TIP-IM-G2",
    "G": "TIP-IM",
}
TRAITS = ("Male", "Young", "Smiling", "Eyeglasses", "Wearing_Hat")


@dataclass(frozen=True)
class Sample:
    """Of the universal perturbation. faces : it is made of, and as many others that it is tried on; xi : bounds in
    grey levels, "linf"; passes : over the faces; forms : ways to find it; deepfool_xi : the bounds of that form"""

    faces: int = 0
    xi: tuple[float, ...] = (4.0, 8.0, 12.0)
    passes: int = 10
    deepfool_xi: tuple[float, ...] = (8.0,)
    traits: bool = True


@dataclass(frozen=True)
class Grid:
    """What is measured, by size.

    protected : people with one probe each; others : people in the gallery beside them; targets : K
    steps : T; gammas : weights of the naturalness, 0 among them; surrogates : each a recogniser, or some joined by "+"
    baselines : choices of ``tipim.Mask``, all at gamma 0
    counts : numbers of targets of appendix D's curve, on the first ``curve`` probes
    speed_faces : batches of both stages to time; speed_steps : of TIP-IM, measured, the rest extrapolated
    """

    protected: int
    others: int
    steps: int
    gammas: tuple[float, ...]
    surrogates: tuple[str, ...]
    targets: int = 10
    baselines: tuple[tipim.Choice, ...] = BASELINES  # type: ignore[assignment]
    counts: tuple[int, ...] = ()
    curve: int = 0
    sample: Sample = field(default_factory=Sample)
    speed: tuple[int, ...] = ()
    speed_steps: int = 2


GRIDS = {
    "paper": Grid(
        500,
        500,
        50,
        (0.0, 0.2, 0.4, 0.6),
        (*recognise.NETWORKS, "+".join(recognise.NETWORKS)),
        counts=(1, 2, 5, 10, 20, 30),
        curve=500,
        sample=Sample(400, (2.0, 4.0, 8.0, 12.0), 20, (4.0, 8.0, 12.0)),
        speed=(1, 8, 50),
        speed_steps=50,
    ),
    "reduced": Grid(
        50,
        500,
        50,
        (0.0, 0.4),
        ("arcface-mobilefacenet",),
        counts=(1, 2, 5, 10),
        curve=20,
        sample=Sample(100, (4.0, 8.0, 12.0), 4, (8.0,)),
        speed=(1, 8),
    ),
    "smoke": Grid(
        4,
        4,
        3,
        (0.0, 0.4),
        ("arcface-mobilefacenet",),
        targets=3,
        counts=(1, 3),
        curve=2,
        sample=Sample(2, (8.0,), 1, (8.0,)),
        speed=(1, 2),
        speed_steps=1,
    ),
}
"""By name. "paper" is the paper's own and wants a GPU; "reduced" ends within an hour on two cores."""


@dataclass(frozen=True)
class Order:
    """How it is measured.

    grid : see GRIDS; name : its name
    size : pixels a side of what is masked and released: 112, ArcFace's alignment, as in the paper; or more, FFHQ's, as
        a release has it, where recognisers search the face anew
    in_loop : whether masks are made for the JPEG file they end in
    diversity : as in ``tipim.Mask``
    targets : "generated" faces of nobody, or "people": others of the collection, as in the paper, for figures alone
    """

    grid: Grid
    name: str = "own"
    size: int = ARCFACE_SIZE
    in_loop: bool = True
    diversity: float = 0.0
    targets: Literal["generated", "people"] = "generated"
    recognisers: tuple[str, ...] = RECOGNISERS
    parts: tuple[str, ...] = PARTS
    work: Path = WORK

    def __post_init__(self) -> None:
        if unheard := set(self.parts) - set(PARTS):
            raise ConfigError(f"--parts: {', '.join(sorted(unheard))} is none of {', '.join(PARTS)}")
        if self.targets not in ("generated", "people"):
            raise ConfigError(f"--targets {self.targets}: neither generated nor people")
        if self.size != ARCFACE_SIZE and self.size < 128:
            raise ConfigError(f"--size {self.size}: {ARCFACE_SIZE}, the paper's, or at least 128")
        unknown = {part for name in self.grid.surrogates for part in name.split("+")} - set(self.recognisers)
        if unknown:
            raise ConfigError(f"--surrogates: {', '.join(sorted(unknown))} is not among the recognisers")

    @property
    def mask(self) -> tipim.Mask:
        """The paper's settings."""
        loop = FILE_QUALITY if self.in_loop else None
        return tipim.Mask(steps=self.grid.steps, diversity=self.diversity, jpeg=loop)


class Makers:
    """The networks, each loaded when it is first needed. ``networks`` : those of other evaluations"""

    def __init__(self, networks: Networks, work: Path = WORK) -> None:
        self.networks, self.work = networks, work
        self.surrogates: dict[str, Any] = {}

    def surrogate(self, name: str) -> Any:
        """A recogniser with a gradient. Raises ConfigError for one without."""
        if name not in self.surrogates:
            kind: Any = "gpu" if self.networks.half else "cpu"
            found = recognise.load(name, kind, folder=self.networks.folder)
            if not found.differentiable:
                raise ConfigError(f"--surrogates: no gradient passes through {name}; it can only judge")
            self.surrogates[name] = found
        return self.surrogates[name]

    def judge(self, name: str) -> recognise.Recogniser:
        """A recogniser, by what runs it fastest: on a GPU PyTorch, and ONNX Runtime on all processors beside it."""
        if self.networks.half and name not in self.networks.recognisers:
            self.networks.recognisers[name] = (
                self.surrogate(name)
                if name in recognise.NETWORKS
                else recognise.load(name, "cpu", threads=os.cpu_count() or 1, folder=self.networks.folder)
            )
        return self.networks.recogniser(name)

    def ensemble(self, name: str) -> list[Any]:
        return [self.surrogate(part) for part in name.split("+")]

    def vectors(self, name: str, files: Sequence[bytes], size: int, say: Say = lambda line: None) -> np.ndarray:
        """Unit embeddings (N, D) of files of ``size`` pixels, or of crops in FFHQ's alignment at any other.

        Files of 112 pixels are in ArcFace's alignment, and crops beside them are cut to it by the template; in larger
        files the face is searched anew.
        """
        recogniser = self.judge(name)
        if size != ARCFACE_SIZE:
            return embeddings(self.networks, files, [name], self.work, say)[name]

        @torch.no_grad()
        def embed(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            return {"vector": recogniser.embed(_planes([chip_of(file) for file in some]) / 255).cpu().numpy()}

        return by_chunk(files, self.work, f"{name}-chips", recogniser.sha256, embed, say=say)["vector"]


def chip_of(file: bytes) -> np.ndarray:
    """(112, 112, 3) uint8, ArcFace's alignment, of a file that is one already, or of a crop in FFHQ's."""
    picture = decode(file)
    if picture.shape[0] == ARCFACE_SIZE:
        return picture
    cut = chips([file], np.full((1, 5, 2), np.nan))[0]
    return (cut * 255).round().byte().permute(1, 2, 0).numpy()


def shown(crop: bytes, size: int) -> np.ndarray:
    """What is masked and released of a crop: (size, size, 3) uint8."""
    if size == ARCFACE_SIZE:
        return chip_of(crop)
    picture = decode(crop)
    way = cv2.INTER_AREA if size < picture.shape[0] else cv2.INTER_LINEAR
    return picture if picture.shape[0] == size else cv2.resize(picture, (size, size), interpolation=way)


def _planes(pictures: Sequence[np.ndarray]) -> Tensor:
    """(N, 3, S, S) float32 grey levels of (S, S, 3) pictures."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


def png(picture: np.ndarray) -> bytes:
    """A lossless file: the paper's pictures are saved without a loss."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


FILES: dict[str, Callable[[np.ndarray], bytes]] = {"jpeg": lambda picture: encode(picture, FILE_QUALITY), "png": png}


# ----------------------------------------------------------------------------------------------------------- protocol


@dataclass(frozen=True)
class Targets:
    """pictures : K crops, which masks are made for; gallery : other pictures of them; of : (G,), whose each is"""

    pictures: list[bytes]
    gallery: list[bytes]
    of: np.ndarray
    kind: str


@dataclass(frozen=True)
class Setting:
    """probes : one face of each protected person; gallery : their others, and all of other people's"""

    probes: Faces
    gallery: Faces
    targets: Targets

    @property
    def figures(self) -> dict[str, int | str]:
        protected = set(self.probes.subject.tolist())
        own = np.isin(self.gallery.subject, list(protected))
        return {
            "protected": len(self.probes),
            "gallery_of_protected": int(own.sum()),
            "others": len(set(self.gallery.subject[~own].tolist())),
            "gallery_of_others": int((~own).sum()),
            "targets": len(self.targets.pictures),
            "targets_kind": self.targets.kind,
            "gallery_of_targets": len(self.targets.gallery),
        }


def protocol(makers: Makers, faces: Faces, order: Order) -> Setting:
    """The paper's section 5.1. People are taken in an order that only names decide.

    Raises InputError where fewer than two people have two faces. Fewer than asked for are half of those there are.
    """
    grid = order.grid
    people, person, count = np.unique(faces.subject, return_inverse=True, return_counts=True)
    several = faces.take(count[person] >= 2)
    able = len(set(several.subject.tolist()))
    wanted = max(grid.targets, *grid.counts, 1) if order.targets == "people" else 0
    protected = min(grid.protected, (able - wanted) // (2 if len(people) < grid.protected + grid.others else 1))
    if protected < 2:
        raise InputError(f"{able} people have two faces or more among these; give more")
    ranked = spread(several, protected + wanted)
    probes, aims = ranked.take(np.arange(protected)), ranked.take(np.arange(protected, protected + wanted))
    rest = faces.take(~np.isin(faces.subject, [*probes.subject.tolist(), *aims.subject.tolist()]))
    others = spread(rest, grid.others).subject.tolist() if len(rest) else []
    taken = {*zip(probes.subject.tolist(), probes.name.tolist(), strict=True)}
    left = [key not in taken for key in zip(faces.subject.tolist(), faces.name.tolist(), strict=True)]
    gallery = faces.take(np.array(left) & np.isin(faces.subject, [*probes.subject.tolist(), *others]))
    return Setting(probes, gallery, people_targets(faces, aims) if wanted else generated(makers, order))


def people_targets(faces: Faces, aims: Faces) -> Targets:
    """People of the collection, by one face of each; their others are in the gallery."""
    gallery, of = [], []
    for number, (subject, name) in enumerate(zip(aims.subject.tolist(), aims.name.tolist(), strict=True)):
        rows = np.flatnonzero((faces.subject == subject) & (faces.name != name))
        gallery += [faces.crop[i] for i in rows]
        of += [number] * len(rows)
    return Targets(list(aims.crop), gallery, np.array(of), "people")


VIEWS = ({"yaw": 1.0, "Smiling": 1.0}, {"yaw": -1.0, "light_across": 1.0})
"""Other pictures of a generated face: standard deviations by which a reading is moved, the other way where the face
has it already."""


def generated(makers: Makers, order: Order) -> Targets:
    """The faces of ``tipim.generated_targets``, and for the gallery the same ones turned, lit or smiling otherwise."""
    count = max(order.grid.targets, *order.grid.counts, 1)
    networks = makers.networks

    def make() -> dict[str, np.ndarray]:
        directions, generator = networks.directions, networks.generator
        views = []
        for number in range(count):
            latent = target_latent(networks, number)
            for view in VIEWS:
                move = torch.zeros(1, len(directions.names), device=latent.device)
                at = directions.positions(list(view))
                read = directions.read(latent)[:, at]
                away = torch.tensor(list(view.values()), device=latent.device) * directions.scale[at]
                move[:, at] = torch.where(read > 0, -away, away)
                views.append(edits.apply(latent, directions, move))
        with torch.no_grad():
            turned = networks.render(torch.cat(views), SIDE)
        return {
            "pictures": tipim.generated_targets(KEY, count, generator, SIDE),
            "gallery": (turned * 255).round().byte().permute(0, 2, 3, 1).numpy(),
        }

    found = kept(makers.work, "targets", [*networks.told, count, VIEWS], make)
    pictures, gallery = ([encode(p, 95) for p in found[name]] for name in ("pictures", "gallery"))
    return Targets(pictures, gallery, np.repeat(np.arange(count), len(VIEWS)), "generated")


@torch.no_grad()
def target_latent(networks: Networks, number: int) -> Tensor:
    """w+ (1, 23, 512) of the face that ``tipim.generated_targets`` draws."""
    z = KEY.generator("target", f"tip-im/{number}").standard_normal((1, STYLE), dtype=np.float32)
    generator = networks.generator
    return generator.truncate(generator.mapping(torch.from_numpy(z).to(networks.device)), 0.7)


# -------------------------------------------------------------------------------------------------------------- ranks


def successes(
    probe: np.ndarray,
    gallery: np.ndarray,
    own: np.ndarray,
    targets: np.ndarray,
    counted: np.ndarray,
    ranks: Sequence[int] = RANKS,
) -> dict[str, np.ndarray]:
    """Which probes are protected, (N,) float 0 or 1, in the paper's measures; pictures compete, and ties count against.

    probe (N, D), gallery (G, D), targets (H, D) : unit vectors
    own (N, G) bool : which gallery pictures are the probe's own person; counted (N, H) bool : which of the targets'
        pictures show somebody that the probe may become

    rank_N_t : among the N best pictures is one of a counted target; rank_N_ut : none is the person's own
    """
    people, aims = probe @ gallery.T, probe @ targets.T
    best = np.where(counted, aims, -np.inf).max(axis=1, keepdims=True)
    above_target = (people >= best).sum(axis=1) + ((aims >= best) & ~counted).sum(axis=1)
    mine = np.where(own, people, -np.inf).max(axis=1, keepdims=True)
    above_own = (people > mine).sum(axis=1) + (aims > mine).sum(axis=1)
    found = {f"rank_{n}_t": above_target < n for n in ranks} | {f"rank_{n}_ut": above_own >= n for n in ranks}
    return {name: value.astype(float) for name, value in found.items()}


# -------------------------------------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class Masked:
    """pixels : (N, S, S, 3) uint8; last : (N,), the target of the last step, -1 without"""

    pixels: np.ndarray
    last: np.ndarray


def masked(
    makers: Makers,
    crops: Sequence[bytes],
    surrogate: str,
    aims: Sequence[bytes],
    how: tipim.Mask,
    order: Order,
    say: Say,
) -> Masked:
    """The pictures of crops, masked; kept by the chunk, the faces that are handled together."""
    device = makers.networks.device
    ensemble = makers.ensemble(surrogate)
    together = tipim.BATCH if how.coupled or device.type == "cuda" else 10

    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        alignment: Literal["ffhq", "arcface"] = "arcface" if order.size == ARCFACE_SIZE else "ffhq"
        targets = tipim.embeddings(ensemble, [chip_of(aim) for aim in aims], str(device))
        masker = tipim.Masker(ensemble, targets, how, order.size, alignment, device)
        pixels = _planes([shown(crop, order.size) for crop in some]).byte()
        draws = [KEY.generator("evaluate perturbation", hashlib.sha256(crop).digest()) for crop in some]
        found = masker(pixels, draws)
        last = found.chosen[-1].cpu().numpy()
        return {"pixels": found.pixels.permute(0, 2, 3, 1).cpu().numpy(), "last": last}

    aimed = [hashlib.sha256(aim).hexdigest() for aim in aims] if how.choice != "advnoise" else []
    told = [[one.sha256 for one in ensemble], aimed, asdict(how), order.size, device.type]
    found = by_chunk(crops, makers.work, f"masked-{how.choice}", told, make, together, say)
    return Masked(found["pixels"], found["last"])


class Judges:
    """Every recogniser with its gallery, enrolled once."""

    def __init__(self, makers: Makers, setting: Setting, order: Order, say: Say) -> None:
        self.makers, self.setting, self.order = makers, setting, order
        sides = setting.gallery.crop, setting.targets.gallery
        self.enrolled = {
            name: [makers.vectors(name, side, order.size, say) for side in sides] for name in order.recognisers
        }

    def __call__(
        self, files: Sequence[bytes], surrogate: str, single: np.ndarray | None = None, count: int | None = None
    ) -> list[dict[str, Any]]:
        """By recogniser the four rates of released files, with 95 % intervals over subjects.

        files : of the first probes; surrogate : what they were masked against, "" where they were not
        single : (N,), of each the only target it may become; count : of targets in the gallery, the grid's by default
        """
        setting = self.setting
        subject = setting.probes.subject[: len(files)]
        own = subject[:, None] == setting.gallery.subject
        there = setting.targets.of < (count or self.order.grid.targets)
        of = setting.targets.of[there]
        counted = np.ones((len(files), len(of)), bool) if single is None else single[:, None] == of
        rows = []
        for name, (gallery, targets) in self.enrolled.items():
            probe = self.makers.vectors(name, files, self.order.size)
            found = successes(probe, gallery, own, targets[there], counted)
            row: dict[str, Any] = {"recogniser": name, "white": name in surrogate.split("+")}
            rows.append(row | {rate: interval(found[rate], subject) for rate in RATES})
        return rows


def mask_figures(makers: Makers, judges: Judges, order: Order, say: Say) -> dict[str, Any]:
    """Tables 2 to 4: ``cells`` by surrogate, method, gamma and recogniser; ``quality`` by surrogate and gamma."""
    grid, probes, aims = order.grid, judges.setting.probes, judges.setting.targets.pictures[: order.grid.targets]
    bare: dict[str, Any] = {"surrogate": "", "method": "none", "gamma": 0.0, "file": "jpeg"}
    cells = [bare | cell for cell in judges([FILES["jpeg"](shown(crop, order.size)) for crop in probes.crop], "")]
    looks: list[dict[str, Any]] = []
    for surrogate in grid.surrogates:
        for choice, gamma in [*((c, 0.0) for c in grid.baselines), *(("G", g) for g in grid.gammas)]:
            say(f"masks: {surrogate}, {NAMES[choice]}, gamma {gamma:g}")
            how = replace(order.mask, choice=choice, gamma=gamma)
            found = masked(makers, probes.crop, surrogate, aims, how, order, say)
            for file in ("jpeg", "png") if choice == "G" and gamma == 0 else ("jpeg",):
                files = [FILES[file](picture) for picture in found.pixels]
                label = {"surrogate": surrogate, "method": choice, "gamma": gamma, "file": file}
                single = found.last if choice == "single" else None
                cells += [label | cell for cell in judges(files, surrogate, single)]
                looks.append(label | likeness(probes.crop, files, probes.subject, order.size))
    return {"cells": cells, "quality": looks, "summary": summary(cells, looks)}


def likeness(crops: Sequence[bytes], files: Sequence[bytes], subject: np.ndarray, size: int) -> dict[str, Any]:
    """PSNR, SSIM and MMD of files against what they were made of; the MMD in batches of 50, or of all where fewer."""
    x = _planes([shown(crop, size) for crop in crops]) / 255
    y = _planes([decode(file) for file in files]) / 255
    with torch.no_grad():
        ssim = torch.cat([quality.ssim(a, b) for a, b in zip(x.split(50), y.split(50), strict=True)])
    batch = min(tipim.BATCH, len(x))
    whole = [
        float(tipim.mmd(y[start : start + batch].flatten(1) * 255, x[start : start + batch].flatten(1) * 255))
        for start in range(0, len(x) - batch + 1, batch)
    ]
    return {
        "psnr": interval(quality.psnr(x, y).double().numpy(), subject),
        "ssim": interval(ssim.double().numpy(), subject),
        "mmd": float(np.mean(whole)),
        "mmd_batch": batch,
    }


def summary(cells: Sequence[dict[str, Any]], looks: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """What the issue asks of TIP-IM at gamma 0, in files as released: Rank-1-T as shares, black-box by the median cell.

    gain : of many targets over a single one, in the median black-box cell
    """

    def rates(method: str, white: bool) -> list[float]:
        chosen = [c for c in cells if c["method"] == method and c["gamma"] == 0 and c["file"] == "jpeg"]
        return [c["rank_1_t"]["mean"] for c in chosen if c["white"] is white]

    def median(values: Sequence[float]) -> float | None:
        return figure(np.median(values)) if len(values) else None

    many, one = median(rates("G", False)), median(rates("single", False))
    ssim = [
        row["ssim"]["mean"] for row in looks if row["method"] == "G" and row["gamma"] == 0 and row["file"] == "jpeg"
    ]
    return {
        "white_lowest": min(rates("G", True), default=None),
        "black_median": many,
        "black_best": max(rates("G", False), default=None),
        "black_median_single": one,
        "gain": many / one if many is not None and one else None,
        "ssim_lowest": min(ssim, default=None),
    }


def count_figures(makers: Makers, judges: Judges, order: Order, say: Say) -> list[dict[str, Any]]:
    """Appendix D: Rank-N by the number of targets, by recogniser, of the first surrogate."""
    grid, setting, rows = order.grid, judges.setting, []
    crops = setting.probes.crop[: grid.curve]
    surrogate = grid.surrogates[0]
    for count in grid.counts:
        say(f"targets: {count}")
        found = masked(makers, crops, surrogate, setting.targets.pictures[:count], order.mask, order, say)
        files = [FILES["jpeg"](picture) for picture in found.pixels]
        label = {"surrogate": surrogate, "targets": count, "probes": len(crops)}
        rows += [label | row for row in judges(files, surrogate, count=count)]
    return rows


# ---------------------------------------------------------------------------------------------------------- universal


NOISES: tuple[Literal["gaussian", "sign"], ...] = ("gaussian", "sign")
"""As long as the vector in l-2, and of one size at its bound."""


@dataclass(frozen=True)
class Pool:
    """train, unseen : one face each of different people; centres : by recogniser, the unit means of all these people's
    other faces, (P, D)"""

    train: Faces
    unseen: Faces
    centres: dict[str, np.ndarray]


def pool(makers: Makers, faces: Faces, order: Order, say: Say) -> Pool | None:
    """The people of the universal perturbation, none where too few have two faces."""
    count = np.unique(faces.subject, return_inverse=True, return_counts=True)
    several = faces.take(count[2][count[1]] >= 2)
    each = min(order.grid.sample.faces, len(set(several.subject.tolist())) // 2)
    if not each:
        return None
    chosen = spread(several, 2 * each)
    taken = {*zip(chosen.subject.tolist(), chosen.name.tolist(), strict=True)}
    left = [key not in taken for key in zip(several.subject.tolist(), several.name.tolist(), strict=True)]
    gallery = several.take(np.array(left) & np.isin(several.subject, chosen.subject))
    _, person = np.unique(gallery.subject, return_inverse=True)
    centres = {}
    for name in order.recognisers:
        vectors = makers.vectors(name, gallery.crop, ARCFACE_SIZE, say)
        sums = np.zeros((person.max() + 1, vectors.shape[1]), np.float32)
        np.add.at(sums, person, vectors)
        centres[name] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return Pool(chosen.take(np.arange(each)), chosen.take(np.arange(each, len(chosen))), centres)


def universal_figures(makers: Makers, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """The share of faces about which a model decides otherwise, by bound, beside noise as strong.

    A recogniser decides which of the people is nearest, an attribute predictor each of ``TRAITS``.
    """
    found = pool(makers, faces, order, say)
    if found is None:
        return {}
    sample, rows = order.grid.sample, []
    device = str(makers.networks.device)
    targets: list[tuple[str, Target]] = []
    for name in order.grid.surrogates:
        if "+" not in name:
            centres = torch.from_numpy(found.centres[name]).to(device)
            targets.append((name, Gallery(makers.surrogate(name), centres)))
    predictors: dict[str, Predictor] = {}
    if sample.traits:
        predictors = {name: Predictor.load(name, makers.networks.folder, device) for name in (STEER_PREDICTOR, JUDGE)}
        targets.append((STEER_PREDICTOR, Traits(predictors[STEER_PREDICTOR], TRAITS)))
    decide = Deciders(makers, found.centres, predictors, order)
    for name, target in targets:
        traits = name in predictors
        judges = list(predictors) if traits else list(order.recognisers)
        # Files alone, without any vector, change a decision too.
        idle = Perturbation(np.zeros((3, SIDE, SIDE), np.int16), "linf", 1.0)
        rows += fooling(decide, found, idle, "file alone", name, judges)
        for xi in sample.xi:
            say(f"universal: {name}, sgd, bound {xi:g}")
            own = vector(makers, target, found.train, "sgd", xi, order, say)
            rows += fooling(decide, found, own, "sgd", name, judges)
            for form in NOISES:
                drawn = noise(own, form, KEY.generator("evaluate perturbation", f"noise/{name}/{form}/{xi}"))
                rows += fooling(decide, found, replace(drawn, xi=xi), form, name, judges)
        for xi in sample.deepfool_xi:
            say(f"universal: {name}, deepfool, bound {xi:g}")
            own = vector(makers, target, found.train, "deepfool", xi, order, say)
            rows += fooling(decide, found, own, "deepfool", name, judges)
    return {"train": len(found.train), "unseen": len(found.unseen), "side": SIDE, "traits": TRAITS, "rows": rows}


def vector(makers: Makers, target: Target, train: Faces, form: Form, xi: float, order: Order, say: Say) -> Perturbation:
    """A universal perturbation, made once for the same faces."""
    passes = order.grid.sample.passes
    quality = FILE_QUALITY if order.in_loop and form == "sgd" else None
    channel = Channel(jpeg=None if quality is None else (quality, quality))

    def make() -> dict[str, np.ndarray]:
        x = _planes([shown(crop, SIDE) for crop in train.crop]).byte()
        draws = KEY.generator("evaluate perturbation", f"universal/{form}/{xi}")
        device = str(makers.networks.device)
        made = fit(
            [target], x, draws, form=form, xi=xi, delta=0.0, passes=passes, channel=channel, device=device, say=say
        )
        return {"vector": made.vector}

    told = [target.sha256, getattr(target, "attributes", None), train.fingerprint, form, xi, passes, quality, SIDE]
    return Perturbation(kept(makers.work, "universal", told, make)["vector"], "linf", xi)


class Deciders:
    """What models decide about files: (N, 1) nearest of the people, or (N, labels)."""

    def __init__(
        self, makers: Makers, centres: dict[str, np.ndarray], predictors: dict[str, Predictor], order: Order
    ) -> None:
        self.makers, self.centres, self.predictors, self.order = makers, centres, predictors, order

    def __call__(self, name: str, files: Sequence[bytes]) -> np.ndarray:
        if name in self.predictors:
            predictor = self.predictors[name]

            def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
                return {"p": predictor.predict([decode(file) for file in some])}

            p = by_chunk(files, self.makers.work, "attributes", predictor.sha256, make)["p"]
            return predictor.values(p)[:, [predictor.attributes.index(a) for a in TRAITS]]
        vectors = self.makers.vectors(name, files, ARCFACE_SIZE)
        return (vectors @ self.centres[name].T).argmax(axis=1)[:, None]


def fooling(
    decide: Callable[[str, Sequence[bytes]], np.ndarray],
    found: Pool,
    added: Perturbation,
    what: str,
    target: str,
    judges: Sequence[str],
) -> list[dict[str, Any]]:
    """By model and set of faces the share that is decided otherwise: of labels, any of them."""
    rows = []
    for name in judges:
        for which, faces in (("train", found.train), ("unseen", found.unseen)):
            pictures = _planes([shown(crop, SIDE) for crop in faces.crop]).byte().numpy()
            files = [encode(p.transpose(1, 2, 0), FILE_QUALITY) for p in added.add(pictures)]
            changed = decide(name, faces.crop) != decide(name, files)
            row = {"target": target, "what": what, "xi": added.xi if what != "file alone" else 0.0}
            row |= {"model": name, "white": name == target, "faces": which}
            rows.append(row | {"fooled": interval(changed.any(axis=1).astype(float), faces.subject)})
    return rows


# -------------------------------------------------------------------------------------------------------------- speed


def speed_figures(makers: Makers, setting: Setting, order: Order, say: Say) -> list[dict[str, Any]]:
    """Pictures a second of both stages by batch. TIP-IM's steps all take as long: some are measured, T are told."""
    grid, rows = order.grid, []
    device = makers.networks.device
    common = {"threads": torch.get_num_threads(), "device": device.type}
    how = replace(order.mask, steps=grid.speed_steps)
    ensemble = makers.ensemble(grid.surrogates[0])
    chosen = [chip_of(aim) for aim in setting.targets.pictures[: grid.targets]]
    alignment: Literal["ffhq", "arcface"] = "arcface" if order.size == ARCFACE_SIZE else "ffhq"
    masker = tipim.Masker(ensemble, tipim.embeddings(ensemble, chosen, str(device)), how, order.size, alignment, device)
    for batch in grid.speed:
        say(f"speed: tip-im, batches of {batch}")
        crops = [setting.probes.crop[i % len(setting.probes)] for i in range(batch)]
        pixels = _planes([shown(crop, order.size) for crop in crops]).byte()
        draws = [KEY.generator("evaluate perturbation", str(i)) for i in range(batch)]
        seconds = timed(lambda pixels=pixels, draws=draws: masker(pixels, draws))  # type: ignore[misc]
        each = seconds / batch / grid.speed_steps * grid.steps
        row = {"stage": "tip-im", "batch": batch, "size": order.size, "targets": grid.targets, "steps": grid.steps}
        rows.append(row | {"steps_measured": grid.speed_steps, "images_per_s": 1 / each} | common)
    vector = KEY.generator("evaluate perturbation", "speed").integers(-8, 9, (3, SIDE, SIDE)).astype(np.int16)
    stage = Universal(Perturbation(vector, "linf", 8.0), column="crop")
    for batch in grid.speed:
        pictures = [shown(setting.probes.crop[i % len(setting.probes)], SIDE) for i in range(batch)]
        repeats = max(1, 256 // batch)
        for name, action in {
            "universal": lambda pictures=pictures: stage({"crop": pictures}),
            "copy of the pixels": lambda pictures=pictures: [picture.copy() for picture in pictures],
        }.items():
            seconds = timed(lambda action=action, repeats=repeats: [action() for _ in range(repeats)])  # type: ignore[misc]
            row = {"stage": name, "batch": batch, "size": SIDE, "images_per_s": batch * repeats / seconds}
            rows.append(row | {"threads": 1, "device": "cpu"})
    return rows


def timed(action: Callable[[], object]) -> float:
    """Seconds of an action, once it ran before."""
    action()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


# -------------------------------------------------------------------------------------------------------------- paper

PAPER_RECOGNISERS = ("CosFace", "ArcFace", "MobileFace", "ResNet50", "SphereFace", "FaceNet")
PAPER_TARGETED = """
CosFace single 45.8 70.2 5.8 25.6 7.6 35.3 6.0 29.8 10.2 32.0 6.4 23.2
CosFace rand 7.0 21.6 6.0 26.4 12.0 42.8 9.0 34.0 9.2 21.4 8.6 27.2
CosFace G1 8.2 26.6 7.8 31.6 14.4 44.4 11.6 41.0 8.8 26.0 8.0 30.4
CosFace G2 6.6 19.4 7.8 21.8 13.2 38.0 9.8 34.8 7.0 23.4 6.4 24.4
CosFace G 61.6 85.2 31.0 62.6 48.8 77.8 39.8 67.2 22.6 48.2 33.0 57.0
ArcFace single 2.6 11.0 94.8 97.6 16.8 48.0 10.8 34.8 4.2 15.6 4.4 19.0
ArcFace rand 2.0 11.2 34.8 68.2 18.8 53.6 15.8 46.0 3.8 18.4 9.6 33.6
ArcFace G1 3.8 13.0 59.4 84.6 36.8 66.0 28.8 57.6 6.6 21.4 11.8 35.4
ArcFace G2 1.6 8.6 39.0 70.6 22.8 55.4 17.2 47.4 5.8 20.0 9.0 30.4
ArcFace G 11.4 31.0 97.2 98.8 69.8 90.6 56.0 80.6 13.2 32.0 32.8 56.2
MobileFace single 1.2 5.2 9.4 28.8 96.6 98.4 28.8 63.2 6.2 19.2 4.8 20.6
MobileFace rand 2.0 11.0 10.6 30.2 40.2 73.2 18.6 49.4 6.8 22.2 9.8 27.0
MobileFace G1 3.6 12.4 14.8 41.8 53.0 83.4 21.8 53.6 5.8 25.6 12.2 29.6
MobileFace G2 1.4 11.2 8.4 32.6 30.2 68.4 16.8 44.2 5.4 19.8 8.0 22.2
MobileFace G 12.4 31.2 44.0 68.2 96.6 99.2 62.8 85.8 12.6 29.8 28.8 46.2
ResNet50 single 2.0 6.6 7.0 26.4 26.6 57.2 31.4 65.0 9.2 24.2 6.8 22.8
ResNet50 rand 1.8 8.8 14.2 37.6 22.4 52.6 31.4 65.0 5.2 16.8 9.4 29.2
ResNet50 G1 2.4 12.0 13.2 37.14 26.8 58.6 41.6 73.4 6.8 21.0 9.2 27.2
ResNet50 G2 1.6 9.8 8.8 31.2 20.6 49.0 21.4 56.8 3.2 16.8 7.8 27.2
ResNet50 G 10.8 26.2 34.2 56.8 62.4 83.4 95.6 98.2 11.4 25.6 23.2 40.0
"""
"""Table 2: surrogate, method, then Rank-1-T and Rank-5-T in per cent by PAPER_RECOGNISERS."""
PAPER_UNTARGETED = """
CosFace single 95.0 93.4 44.8 30.8 56.2 45.0 46.6 37.8 88.8 81.2 68.0 52.8
CosFace rand 96.6 94.6 52.8 42.4 65.0 52.4 55.0 45.8 92.2 88.2 78.2 63.8
CosFace G1 95.8 95.4 55.8 42.8 66.0 54.8 57.2 46.6 91.4 86.2 75.6 63.8
CosFace G2 95.4 95.5 54.6 43.0 65.6 53.0 57.2 46.2 91.6 86.2 76.0 66.0
CosFace G 96.6 95.4 54.2 39.4 64.8 51.2 57.2 44.2 89.0 84.0 73.6 61.2
ArcFace single 74.2 62.8 95.8 91.8 67.6 58.2 58.2 48.0 79.6 68.2 67.4 53.6
ArcFace rand 80.0 72.2 96.0 93.6 73.6 65.2 64.8 54.2 82.8 73.0 73.0 60.0
ArcFace G1 82.0 72.8 96.0 95.2 79.0 70.0 68.2 59.0 85.2 76.6 73.4 63.4
ArcFace G2 84.0 73.0 95.6 93.4 73.0 65.2 63.4 55.4 83.8 74.0 73.6 60.8
ArcFace G 74.0 63.8 97.4 96.4 79.4 68.8 70.4 56.8 78.6 68.4 70.0 57.8
MobileFace single 75.6 62.2 60.2 45.4 96.6 92.0 72.2 59.0 80.0 69.6 68.4 53.6
MobileFace rand 79.4 67.0 67.2 55.4 95.4 93.6 77.6 68.4 83.2 73.2 74.6 60.6
MobileFace G1 80.0 67.8 67.4 58.0 95.0 93.6 80.8 73.8 84.4 74.6 77.0 62.0
MobileFace G2 79.4 68.2 66.4 57.4 95.2 94.6 80.0 71.4 84.4 74.0 77.6 60.4
MobileFace G 74.4 61.2 68.6 52.8 96.6 94.8 81.4 71.2 78.6 65.0 75.0 58.6
ResNet50 single 77.6 64.2 61.8 50.4 80.6 72.2 95.4 91.6 80.4 65.8 69.0 53.2
ResNet50 rand 83.0 71.8 73.2 59.0 84.8 78.2 95.0 93.8 83.2 74.4 79.4 63.8
ResNet50 G1 82.8 72.4 70.0 59.6 87.0 81.8 95.8 94.8 85.8 75.0 78.8 65.0
ResNet50 G2 83.6 73.0 71.6 58.4 85.2 77.4 95.4 92.8 84.0 74.2 77.4 65.4
ResNet50 G 77.0 65.8 68.0 54.6 85.4 77.4 96.8 94.6 77.6 65.4 72.6 60.8
"""
"""Table 4: Rank-1-UT and Rank-5-UT."""
PAPER_LOOK = {0.0: (25.24, 0.6490, 0.7567), 0.2: (25.18, 0.6523, 0.7568), 0.4: (25.72, 0.6828, 0.7559)}
PAPER_LOOK |= {0.6: (27.19, 0.7533, 0.7525)}
"""Table 3, MobileFace: PSNR, SSIM and MMD by gamma. What gamma multiplies there is scaled otherwise than here."""
PAPER_GENERATED = (49.6, 12.2, 32.4, 29.2, 27.4, 28.2)
"""Table 7: Rank-1-T with generated targets, CosFace the surrogate and the first."""
PAPER_ADVNOISE = {"original": (0.973, 0.935), "AdvNoise": (0.951, 0.765)}
"""DeepBlur's table 2, its first threat model: how often Face++ and Azure name the person, so 1 - Rank-1-UT."""


def paper_cells() -> list[dict[str, Any]]:
    """The cells of tables 2 and 4, as shares, in the form of ``mask_figures``."""
    rows = []
    for targeted, untargeted in zip(
        PAPER_TARGETED.strip().splitlines(), PAPER_UNTARGETED.strip().splitlines(), strict=True
    ):
        (surrogate, method, *t), (_, _, *ut) = targeted.split(), untargeted.split()
        for i, name in enumerate(PAPER_RECOGNISERS):
            values = [float(v) / 100 for v in (*t[2 * i : 2 * i + 2], *ut[2 * i : 2 * i + 2])]
            row = {"surrogate": surrogate, "method": method, "gamma": 0.0, "recogniser": name}
            rows.append(row | {"white": name == surrogate} | dict(zip(RATES, values, strict=True)))
    return rows


def paper_median(method: str, rate: str, white: bool) -> float | None:
    """Of the paper's white- or black-box cells, over all its surrogates; None for what it has not."""
    values = [cell[rate] for cell in paper_cells() if cell["method"] == method and cell["white"] is white]
    return float(np.median(values)) if values else None


# ---------------------------------------------------------------------------------------------------------------- all


def evaluate(makers: Makers, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """Everything that the grid asks for. Raises InputError with too few people, ConfigError for an order without
    sense."""
    for name in order.grid.surrogates:
        makers.ensemble(name)
    setting = protocol(makers, faces, order)
    asked = asdict(order.grid)
    found: dict[str, Any] = {"grid": order.name, "asked": asked, "protocol": setting.figures, "size": order.size}
    found |= {"jpeg_in_loop": order.in_loop, "diversity": order.diversity, "device": makers.networks.device.type}
    say(f"protocol: {setting.figures}")
    found["targets_alike"] = alikeness(makers, setting.targets, order)
    judges = Judges(makers, setting, order, say)
    if "masks" in order.parts:
        found["masks"] = mask_figures(makers, judges, order, say)
        found["masks"]["paper"] = {"cells": paper_cells(), "look": {str(g): look for g, look in PAPER_LOOK.items()}}
        found["masks"]["paper"] |= {"generated_rank_1_t": PAPER_GENERATED, "advnoise": PAPER_ADVNOISE}
    if "counts" in order.parts and order.grid.counts and order.grid.curve:
        found["counts"] = count_figures(makers, judges, order, say)
    if "universal" in order.parts and order.grid.sample.faces:
        found["universal"] = universal_figures(makers, faces, order, say)
    if "speed" in order.parts and order.grid.speed:
        found["speed"] = speed_figures(makers, setting, order, say)
    return found


def alikeness(makers: Makers, targets: Targets, order: Order) -> dict[str, dict[str, float | None]]:
    """By recogniser the mean cosine of a target's picture to those of it in the gallery, and to the other targets'."""
    found = {}
    for name in order.recognisers:
        one = makers.vectors(name, targets.pictures, order.size)
        other = makers.vectors(name, targets.gallery, order.size)
        cosine = one @ other.T
        same = np.arange(len(one))[:, None] == targets.of
        others = figure(cosine[~same].mean()) if (~same).any() else None
        found[name] = {"same": figure(cosine[same].mean()), "others": others}
    return found


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    console = Console(width=160)
    console.print(f"grid {found['grid']}, {found['size']} px, on {found['device']}: {found['protocol']}")
    alike = [f"{n} {_number(a['same'])} / {_number(a['others'])}" for n, a in found["targets_alike"].items()]
    console.print("cosine of a target to its own pictures in the gallery / to others' there: " + ", ".join(alike))
    if "masks" in found:
        show_masks(console, found["masks"])
    if "counts" in found:
        table = Table("targets", "probes", "recogniser", "Rank-1-T", "Rank-5-T", "Rank-1-UT")
        for row in found["counts"]:
            rates_of = [_percent(row[rate]["mean"]) for rate in RATES[:3]]
            star = "*" if row["white"] else ""
            table.add_row(str(row["targets"]), str(row["probes"]), row["recogniser"] + star, *rates_of)
        console.print(table)
    if found.get("universal"):
        part = found["universal"]
        console.print(f"universal: made of {part['train']} faces, tried on {part['unseen']} others; share fooled")
        table = Table("made against", "what", "bound", "model", "train", "unseen", "95 %")
        rows = part["rows"]
        for seen, unseen in zip(rows[::2], rows[1::2], strict=True):
            share = [_percent(row["fooled"]["mean"]) for row in (seen, unseen)]
            within = f"{_percent(unseen['fooled']['low'])} – {_percent(unseen['fooled']['high'])}"
            star = "*" if seen["white"] else ""
            table.add_row(seen["target"], seen["what"], f"{seen['xi']:g}", seen["model"] + star, *share, within)
        console.print(table)
    if "speed" in found:
        table = Table("stage", "batch", "size", "steps", "threads", "device", "images/s")
        for row in found["speed"]:
            steps = f"{row['steps']} ({row['steps_measured']} measured)" if "steps" in row else ""
            values = [str(row[c]) for c in ("stage", "batch", "size")] + [steps, str(row["threads"]), row["device"]]
            table.add_row(*values, _number(row["images_per_s"]))
        console.print(table)


def show_masks(console: Console, masks: dict[str, Any]) -> None:
    """Tables 2 to 4."""
    for title, rates in (("Rank-1-T / Rank-5-T", RATES[:2]), ("Rank-1-UT / Rank-5-UT", RATES[2:])):
        console.print(rank_table(masks["cells"], title, rates))
    table = Table("surrogate", "method", "gamma", "file", "PSNR", "SSIM", "MMD", "of", "paper: PSNR SSIM MMD")
    for row in masks["quality"]:
        paper = PAPER_LOOK.get(row["gamma"]) if row["method"] == "G" else None
        values = [_number(row["psnr"]["mean"]), _number(row["ssim"]["mean"]), f"{row['mmd']:.4f}"]
        label = (row["surrogate"], NAMES[row["method"]], f"{row['gamma']:g}", row["file"])
        table.add_row(*label, *values, str(row["mmd_batch"]), " ".join(map(str, paper)) if paper else "")
    console.print(table)
    console.print("summary: " + ", ".join(f"{name} {_number(value)}" for name, value in masks["summary"].items()))


def rank_table(cells: Sequence[dict[str, Any]], title: str, rates: Sequence[str]) -> Table:
    """The layout of tables 2 and 4, in per cent; * marks white-box cells. The paper's medians stand beside."""
    names = list(dict.fromkeys(cell["recogniser"] for cell in cells))
    table = Table("surrogate", "method", "gamma", "file", *names, "paper: white", "black (medians)", title=title)
    rows: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for cell in cells:
        key = (cell["surrogate"], cell["method"], cell["gamma"], cell["file"])
        rows.setdefault(key, {})[cell["recogniser"]] = cell
    for (surrogate, method, gamma, file), by in rows.items():
        shares = [
            " / ".join(_percent(by[n][rate]["mean"]) for rate in rates) + ("*" if by[n]["white"] else "") for n in names
        ]
        there = gamma == 0
        paper = [
            " / ".join(_percent(paper_median(method, rate, white) if there else None) for rate in rates)
            for white in (True, False)
        ]
        table.add_row(surrogate or "–", NAMES[method], f"{gamma:g}", file, *shares, *paper)
    return table


def plot(found: dict[str, Any], folder: Path) -> Path:
    """A PNG: Rank-1-T and SSIM by gamma, a row per surrogate (figure 4); below, Rank-1-T by the number of targets."""
    from matplotlib.figure import Figure

    masks, counts = found["masks"], found.get("counts", [])
    surrogates = list(dict.fromkeys(row["surrogate"] for row in masks["quality"]))
    rows = len(surrogates) + bool(counts)
    picture = Figure(figsize=(11, 3.6 * rows), layout="constrained")
    panels = picture.subplots(rows, 2, squeeze=False)
    for surrogate, (left, right) in zip(surrogates, panels, strict=False):
        kept_rows = [
            cell
            for cell in masks["cells"]
            if cell["surrogate"] == surrogate and cell["method"] == "G" and cell["file"] == "jpeg"
        ]
        looks = {
            row["gamma"]: row["ssim"]["mean"]
            for row in masks["quality"]
            if row["surrogate"] == surrogate and row["method"] == "G" and row["file"] == "jpeg"
        }
        for name in dict.fromkeys(cell["recogniser"] for cell in kept_rows):
            own = [cell for cell in kept_rows if cell["recogniser"] == name]
            gammas, shares = [cell["gamma"] for cell in own], [100 * cell["rank_1_t"]["mean"] for cell in own]
            label = name + ("*" if own[0]["white"] else "")
            left.plot(gammas, shares, marker="o", label=label)
            right.plot([looks[g] for g in gammas], shares, marker="o", label=label)
        left.set(title=f"surrogate {surrogate}", xlabel="gamma", ylabel="Rank-1-T, %")
        right.set(title=f"surrogate {surrogate}", xlabel="SSIM", ylabel="Rank-1-T, %")
        left.legend(fontsize="small")
    if counts:
        for panel, rate in zip(panels[-1], RATES[:2], strict=True):
            for name in dict.fromkeys(row["recogniser"] for row in counts):
                rows_of = [row for row in counts if row["recogniser"] == name]
                shares = [100 * row[rate]["mean"] for row in rows_of]
                panel.plot([row["targets"] for row in rows_of], shares, marker="o", label=name)
            panel.set(xlabel="targets", ylabel=f"Rank-{rate[5]}-T, %")
        panels[-1][0].legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    picture.savefig(folder / "perturbation.png", dpi=120)
    return folder / "perturbation.png"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
