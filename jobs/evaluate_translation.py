"""``facecrowd evaluate translation``: does a translated face show what it should, and what else changed?

Each part runs on faces of test people, whom neither the translator nor any predictor learned from:

    flips      each attribute turned round alone: seen by the predictor that steers, and by the judge, who took no part
    quality    faces translated to a plan, beside blur, pixelate, mask and inpainting (AnonymousNet, table 1)
    parts      1 to 4 parts obfuscated, and the adaptive choice: LPIPS and FID (adaptive obfuscation, table 2), and how
               often recognisers that the identity loss never saw still match (tables 3 and 4)
    speed      faces a second of the stage, by its parts

What takes long is kept in a work folder, chunk by chunk: a killed evaluation goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from facecrowd.jobs.evaluate_generator import interval
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import (
    KEY,
    SIDE,
    STEER,
    WORK,
    Networks,
    Say,
    altered,
    by_chunk,
    embeddings,
    files,
    spread,
)
from facecrowd.jobs.translations import SIZE, Makers, planned
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.privacy.measure import figure
from facecrowd.privacy.verification import Verification, pairs, verify
from facecrowd.stages import align, obscure, quality, regions, translate
from facecrowd.stages.attributes import ATTRIBUTES, JUDGE
from facecrowd.stages.attributes import STEER as STEER_PREDICTOR
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

RECOGNISERS = ("sface", "facex-zoo-1", "facex-zoo-2", "edgeface-s")
"""None of them in the identity loss, nor among the heatmaps, which are ArcFace's."""

PARTS: tuple[Any, ...] = (1, 2, 3, 4, "adaptive")
FARS = (0.01, 0.1)
GENUINE, IMPOSTOR = 1_000, 2_000
"""Pairs of adaptive obfuscation, section 4.5."""

BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "blur": obscure.Blur(),
    "pixelate": obscure.Pixelate(),
    "mask eyes": obscure.Mask("eyes"),
    "mask face": obscure.Mask("face"),
}
PAPER = {
    "blur": (24.532, 0.8281, 0.8842),
    "pixelate": (22.802, 0.8226, 0.8784),
    "mask face": (15.459, 0.8762, 0.8204),
    "inpaint": (18.097, 0.8020, 0.7659),
    "planned": (20.079, 0.7894, 0.8650),
}
"""AnonymousNet's table 1: PSNR, SSIM, MS-SSIM. Its settings of the baselines are not stated."""
PAPER_PARTS = {
    1: (0.088, 8.835, 0.8304, 0.9689),
    2: (0.104, 12.41, 0.6505, 0.9051),
    3: (0.104, 12.41, 0.5015, 0.8250),
    4: (0.087, 22.84, 0.3714, 0.7442),
    "adaptive": (0.114, 22.132, 0.6439, 0.7523),
}
"""Adaptive obfuscation on CelebA: LPIPS and FID (table 2), ArcFace's TAR at FAR 0.01 and 0.1 (table 4)."""


@dataclass(frozen=True)
class Order:
    """What to measure; a count of 0 leaves that part out.

    flips : test faces on which each attribute is flipped; quality : faces translated to a plan; parts : faces whose
    parts are obfuscated; speed : faces to time; translators : as in ``translate.load``, for flips and quality;
    keeper : the translator of ``parts``; strength : of its change, None for its own
    """

    flips: int = 48
    quality: int = 200
    parts: int = 900
    speed: int = 32
    translators: tuple[str, ...] = ("stargan",)
    keeper: str = "stargan-identity"
    strength: float | None = None
    recognisers: tuple[str, ...] = RECOGNISERS
    inpaint: int = 16
    work: Path = WORK


# -------------------------------------------------------------------------------------------------------------- flips


def flip_figures(makers: Makers, faces: Faces, order: Order, say: Say) -> list[dict[str, Any]]:
    """By translator and attribute: success, what else moved, and how far the picture did."""
    chosen = spread(faces, order.flips)
    steer, judge = makers.values(chosen.crop), makers.values(chosen.crop, judge=True)
    before = makers.probabilities(chosen.crop, judge=True)
    rows = []
    for translator in order.translators:
        for name in makers.translator(translator).attributes:
            if name not in stargan_attributes(makers, order):
                continue
            say(f"flips: {translator}, {name}")
            at = ATTRIBUTES.index(name)
            wanted = np.full((len(chosen), len(ATTRIBUTES)), -1, np.int8)
            wanted[:, at] = 1 - steer[:, at]
            made = makers.translated(translator, chosen.crop, wanted)
            seen = makers.values(made)[:, at] == wanted[:, at]
            # Of faces in which the judge, too, had seen the old value.
            agreed = judge[:, at] == steer[:, at]
            after = makers.probabilities(made, judge=True)
            judged = makers.judge.values(after)[:, at] == wanted[:, at]
            others = np.abs(after - before)
            others[:, at] = np.nan
            close = likeness(makers, chosen.crop, made)
            rows.append(
                {
                    "translator": translator,
                    "attribute": name,
                    "steer": float(seen.mean()),
                    "judge": figure(judged[agreed].mean()) if agreed.any() else None,
                    "judge_faces": int(agreed.sum()),
                    # How far its probability goes the way that was wanted.
                    "judge_moves": float(((after - before)[:, at] * np.where(wanted[:, at] == 1, 1, -1)).mean()),
                    "others": float(np.nanmean(others)),
                    "lpips": float(close["lpips"].mean()),
                    "psnr": figure(close["psnr"].mean()),
                }
            )
    return rows


def stargan_attributes(makers: Makers, order: Order) -> tuple[str, ...]:
    """What the networks among the translators know; where there is none, everything."""
    named = [t for t in order.translators if t != translate.LATENT]
    return makers.translator(named[0]).attributes if named else ATTRIBUTES


def likeness(makers: Makers, crops: Sequence[bytes], made: Sequence[bytes]) -> dict[str, np.ndarray]:
    """LPIPS (VGG16), PSNR, SSIM and MS-SSIM of files and the crops they were made of, at ``SIZE``: (N,) each."""
    joined = [a + b"|" + b for a, b in zip(crops, made, strict=True)]
    sides = dict(zip(joined, zip(crops, made, strict=True), strict=True))

    @torch.no_grad()
    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        x = makers.networks.pixels([sides[s][0] for s in some], SIZE)
        y = makers.networks.pixels([sides[s][1] for s in some], SIZE)
        found = {
            "lpips": quality.lpips(makers.networks.lpips, x, y),
            "psnr": quality.psnr(x, y),
            "ssim": quality.ssim(x, y),
            "ms_ssim": quality.ms_ssim(x, y),
        }
        return {name: value.double().cpu().numpy() for name, value in found.items()}

    return by_chunk(joined, makers.work, "likeness", SIZE, make, 16)


# ------------------------------------------------------------------------------------------------------------ quality


def quality_figures(makers: Makers, faces: Faces, order: Order, say: Say) -> list[dict[str, Any]]:
    """By method PSNR, SSIM, MS-SSIM, LPIPS and FID of the same faces, beside AnonymousNet's table 1."""
    plan = planned(makers, faces)
    chosen = spread(faces, order.quality)
    place = {key: i for i, key in enumerate(zip(faces.subject.tolist(), faces.name.tolist(), strict=True))}
    rows_of = [place[key] for key in zip(chosen.subject.tolist(), chosen.name.tolist(), strict=True)]
    made: dict[str, tuple[Sequence[bytes], list[bytes]]] = {}
    untouched: dict[str, np.ndarray] = {}
    for name, method in BASELINES.items():
        pictures = [_small(decode(crop)) for crop in chosen.crop]
        made[name] = chosen.crop, [encode(method(p, align.template(SIZE), None), 95) for p in pictures]
    for translator in order.translators:
        say(f"quality: {translator}, planned")
        known = np.isin(ATTRIBUTES, makers.translator(translator).attributes)
        wanted = np.where(known, plan[rows_of], -1).astype(np.int8)
        shows = makers.values(chosen.crop)
        untouched[f"planned, {translator}"] = ((wanted < 0) | (wanted == shows)).all(axis=1)
        made[f"planned, {translator}"] = chosen.crop, makers.translated(translator, chosen.crop, wanted)
    if order.inpaint:
        say("quality: inpaint")
        few = chosen.crop[: order.inpaint]
        inpainted = altered(makers.networks, few, "inpaint", 10, 128, order.work)
        made["inpaint"] = few, files(F.interpolate(inpainted, (SIZE, SIZE), mode="area"))
    rows = []
    for name, (crops, shown) in made.items():
        close = likeness(makers, crops, shown)
        row: dict[str, Any] = {"method": name, "faces": len(shown)}
        row |= {m: interval(close[m], chosen.subject[: len(shown)]) for m in ("psnr", "ssim", "ms_ssim", "lpips")}
        row["fid"] = fid(makers, crops, shown) if len(shown) >= 100 else None
        row["untouched"] = float(np.mean(untouched[name])) if name in untouched else 0.0
        row["paper"] = PAPER.get(name.partition(",")[0])
        rows.append(row)
    return rows


def _small(picture: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    small = F.interpolate(x, (SIZE, SIZE), mode="area")
    return small[0].permute(1, 2, 0).round().byte().numpy()


def fid(makers: Makers, crops: Sequence[bytes], made: Sequence[bytes]) -> float:
    """Of made faces against the faces they were made of, all at ``SIZE``."""

    def features(some_files: Sequence[bytes]) -> np.ndarray:
        def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            return {"inception": makers.networks.inception.features(makers.networks.pixels(some, SIZE)).cpu().numpy()}

        return by_chunk(some_files, makers.work, "inception", ["inception-fid", SIZE], make, 32)["inception"]

    return quality.fid(features(crops), features(made))


# -------------------------------------------------------------------------------------------------------------- parts


def parts_figures(makers: Makers, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """LPIPS, FID and verification by 1 to 4 obfuscated parts and the adaptive choice, beside the paper's tables."""
    chosen = spread(faces, order.parts)
    genuine, impostor = pairs(chosen.subject, GENUINE, IMPOSTOR, KEY.generator("evaluate translation", "pairs"))
    if not len(genuine):
        raise InputError("no test person has two faces among these; give more")
    names = order.recognisers
    keeper = makers.translator(order.keeper)
    if order.strength is not None and isinstance(keeper, translate.Network):
        keeper.strength = order.strength
    strange = set(regions.PARTS.values()) - set(keeper.attributes)
    if strange:
        raise ConfigError(f"--keeper {order.keeper}: it translates no {', '.join(sorted(strange))}")
    original = embeddings(makers.networks, chosen.crop, [STEER, *names], order.work, say)
    for_fid = chosen.crop[: min(len(chosen), 300)]
    rows = []
    for parts in (0, *PARTS):
        say(f"parts: {parts}")
        made = list(chosen.crop) if parts == 0 else makers.obfuscated(order.keeper, chosen.crop, parts)
        shown = embeddings(makers.networks, made, [STEER, *names], order.work)
        row: dict[str, Any] = {"parts": parts, "faces": len(made), "paper": PAPER_PARTS.get(parts)}
        if parts:
            few = slice(0, len(for_fid))
            row["lpips_faces"] = len(for_fid)
            row["lpips"] = interval(likeness(makers, for_fid, made[few])["lpips"], chosen.subject[few])
            row["fid"] = fid(makers, for_fid, made[few]) if len(for_fid) >= 100 else None
            row["parts_per_face"] = float(makers.chosen(chosen.crop, parts).sum(axis=1).mean())
        row["tar"] = {
            name: _verified(original[name], shown[name], genuine, impostor, chosen.subject) for name in (STEER, *names)
        }
        rows.append(row)
    return {
        "genuine_pairs": len(genuine),
        "impostor_pairs": len(impostor),
        "subjects": len(set(chosen.subject.tolist())),
        "translator": order.keeper,
        "strength": getattr(keeper, "strength", None),
        "in_the_identity_loss": makers.about(order.keeper).get("identity_loss"),
        "rows": rows,
    }


def _verified(
    original: np.ndarray, shown: np.ndarray, genuine: np.ndarray, impostor: np.ndarray, subject: np.ndarray
) -> dict[str, Any]:
    """An original against a translated face: the thresholds are those of impostor pairs of the same kind."""
    found: Verification = verify(
        (original[genuine[:, 0]] * shown[genuine[:, 1]]).sum(axis=1),
        (original[impostor[:, 0]] * shown[impostor[:, 1]]).sum(axis=1),
        FARS,
        rng=KEY.generator("evaluate translation", "verify"),
        subject=subject[genuine[:, 0]],
    )
    return {str(far): found.rates[far].as_dict() for far in FARS}


# -------------------------------------------------------------------------------------------------------------- speed


def speed_figures(makers: Makers, faces: Faces, order: Order, say: Say) -> list[dict[str, Any]]:
    """Faces a second, by what is done: decoding, one pass, the predictor, the whole stage, encoding."""
    crops = spread(faces, order.speed).crop
    rows = []
    for name in (t for t in order.translators if t != translate.LATENT):
        for what, action in _actions(makers, name, crops).items():
            say(f"speed: {name}, {what}")
            action()
            began = time.perf_counter()
            action()
            taken = time.perf_counter() - began
            row = {"translator": name, "what": what, "faces": len(crops), "size": SIZE}
            row |= {"threads": torch.get_num_threads(), "device": makers.networks.device.type}
            rows.append(row | {"faces_per_s": len(crops) / taken})
    return rows


def _actions(makers: Makers, name: str, crops: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    device = str(makers.networks.device)
    network, half = (translate.load(name, makers.steer, device=device, half=half) for half in (False, True))
    x, values = makers.networks.pixels(crops, SIZE), makers.values(crops)
    stage = translate.Translate(name, size=SIZE, device=device)
    stage.networks = (network, makers.steer)
    pictures = [_small(decode(crop)) for crop in crops]
    wanted = list(_everything(len(crops), network.attributes))

    @torch.inference_mode()
    def predictor() -> Tensor:
        return makers.steer.logits(x)

    return {
        "decode": lambda: [decode(crop) for crop in crops],
        "one pass": lambda: network.change(x, values, 1 - values),
        "one pass, bf16": lambda: half.change(x, values, 1 - values),
        "predictor": predictor,
        "stage": lambda: stage({"crop": pictures, "wanted": wanted}),
        "encode": lambda: [encode(picture, 92) for picture in pictures],
    }


def _everything(count: int, attributes: Sequence[str]) -> np.ndarray:
    """Wishes that ask every face for every attribute."""
    wanted = np.full((count, len(ATTRIBUTES)), -1, np.int8)
    wanted[:, np.isin(ATTRIBUTES, attributes)] = 1
    return wanted


# ---------------------------------------------------------------------------------------------------------------- all


def evaluate(networks: Networks, faces: Faces, order: Order, say: Say) -> dict[str, Any]:
    """Everything that is asked for. Raises InputError without a face of a test person, ConfigError for an order that
    makes no sense."""
    if STEER in order.recognisers:
        raise ConfigError(f"--recognisers: {STEER} is in the identity loss, and measured beside the others anyway")
    test = faces.of("test")
    if not len(test):
        raise InputError("no face of a test subject among these; give more people")
    makers = Makers(networks, order.work)
    found: dict[str, Any] = {"faces": len(test), "subjects": len(set(test.subject.tolist())), "size": SIZE}
    found |= {"steer": STEER_PREDICTOR, "judge": JUDGE, "side_of_crops": SIDE}
    sections = {
        "flips": (flip_figures, order.flips),
        "quality": (quality_figures, order.quality),
        "parts": (parts_figures, order.parts),
        "speed": (speed_figures, order.speed),
    }
    for name, (section, asked) in sections.items():
        if asked:
            found[name] = section(makers, test, order, say)
    return found


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    console = Console(width=140)
    console.print(f"{found['faces']} faces of {found['subjects']} test people, at {found['size']} px")
    if "flips" in found:
        table = Table("translator", "attribute", "steers", "judge", "of faces", "moves", "others", "LPIPS", "PSNR")
        for row in found["flips"]:
            names = ("steer", "judge", "judge_faces", "judge_moves", "others", "lpips", "psnr")
            table.add_row(row["translator"], row["attribute"], *(_text(row[name]) for name in names))
        console.print(table)
    if "quality" in found:
        columns = ("method", "faces", "untouched", "PSNR", "SSIM", "MS-SSIM", "LPIPS", "FID")
        table = Table(*columns, "paper: PSNR, SSIM, MS-SSIM")
        for row in found["quality"]:
            means = [_text(row[name]["mean"]) for name in ("psnr", "ssim", "ms_ssim", "lpips")]
            paper = " ".join(map(str, row["paper"])) if row["paper"] else ""
            table.add_row(row["method"], str(row["faces"]), _text(row["untouched"]), *means, _text(row["fid"]), paper)
        console.print(table)
    if "parts" in found:
        part = found["parts"]
        seen = list(part["rows"][0]["tar"])
        console.print(
            f"verification, original against translated: {part['genuine_pairs']} genuine and {part['impostor_pairs']} "
            f"impostor pairs; TAR at FAR {' / '.join(map(str, FARS))}; LPIPS and FID of "
            f"{part['rows'][1]['lpips_faces']} faces; in the identity loss: {part['in_the_identity_loss'] or 'none'}"
        )
        table = Table("parts", "LPIPS", "FID", *seen, "paper: LPIPS, FID, ArcFace's TAR")
        for row in part["rows"]:
            tars = [" / ".join(_text(row["tar"][n][str(far)]["rate"]) for far in FARS) for n in seen]
            lpips = _text(row["lpips"]["mean"]) if "lpips" in row else "–"
            paper = " ".join(map(str, row["paper"])) if row["paper"] else ""
            table.add_row(str(row["parts"] or "none"), lpips, _text(row.get("fid")), *tars, paper)
        console.print(table)
    if "speed" in found:
        table = Table("translator", "what", "faces", "size", "threads", "device", "faces/s")
        for row in found["speed"]:
            table.add_row(
                *(_text(row[c]) for c in ("translator", "what", "faces", "size", "threads", "device")),
                f"{row['faces_per_s']:.1f}",
            )
        console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)
