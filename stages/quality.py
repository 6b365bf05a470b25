"""Image quality: how far one picture is from another (PSNR, SSIM, MS-SSIM, LPIPS), one set from another (FID).

The measures are the published ones, on RGB in [0, 1]:

    PSNR      10 log10(1 / mean squared error), in dB
    SSIM      Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004: Gaussian window 11 px, sigma 1.5, mean of channels
    MS-SSIM   Wang, Simoncelli, Bovik, Asilomar 2003: five scales, the product taken per channel, then the mean
    LPIPS     Zhang et al., CVPR 2018: ``networks/vgg.py``
    FID       Heusel et al., NeurIPS 2017: ``networks/inception.py`` and ``fid``
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytorch_msssim
import torch
from scipy import linalg
from torch import Tensor

from facecrowd.stages import models
from facecrowd.stages.batch import FAILED, explain, outcomes
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.networks.inception import WIDTH, Inception
from facecrowd.stages.networks.vgg import Lpips
from facecrowd.stages.stage import Batch, Resources, Stage, live

SSIM_WINDOW = 11
SCALES = 5


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (N, 3, H, W) in [0, 1]: (N,) dB, infinite for equal pictures."""
    _check(x, y)
    return -10 * torch.log10((x - y).square().mean((1, 2, 3)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of (N, 3, H, W) in [0, 1]: (N,), 1 for equal pictures. Sides of 11 px and more."""
    _check(x, y)
    if min(x.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW} px, not {x.shape[-2]} × {x.shape[-1]}")
    return pytorch_msssim.ssim(x, y, data_range=1.0, size_average=False, win_size=SSIM_WINDOW)


def ms_ssim_window(height: int, width: int) -> int:
    """The window of MS-SSIM in px: the published 11 from 161 px on, else the largest odd one that fits all five scales.

    At 128 px it is 7, at 64 px 3. Smaller windows see less structure: values below 161 px compare only with values at
    the same size. Raises ValueError below 33 px.
    """
    largest = (min(height, width) - 1) // 2 ** (SCALES - 1) + 1
    window = min(SSIM_WINDOW, largest - 1 + largest % 2)
    if window < 3:
        raise ValueError(f"MS-SSIM needs sides of at least 33 px, not {height} × {width}")
    return window


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of (N, 3, H, W) in [0, 1]: (N,), with the window of ``ms_ssim_window``."""
    _check(x, y)
    window = ms_ssim_window(*x.shape[-2:])
    return pytorch_msssim.ms_ssim(x, y, data_range=1.0, size_average=False, win_size=window)


def lpips(network: Lpips, x: Tensor, y: Tensor) -> Tensor:
    """Perceptual distance of (N, 3, H, W) in [0, 1]: (N,), 0 for equal pictures. VGG and AlexNet values differ."""
    _check(x, y)
    return network.distance(x, y)


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"pictures of different sizes cannot be compared: {tuple(x.shape)} and {tuple(y.shape)}")


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians, means (d,) and covariances (d, d).

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    (Dowson and Landau, 1982). With C_a = L L', the eigenvalues of C_a C_b are those of the symmetric L' C_b L, which
    stays real and exact where fewer samples than features leave the covariances singular.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(value, np.float64) for value in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = linalg.eigh(cov_a)
    factor = vectors * np.sqrt(np.clip(values, 0, None))
    shared = linalg.eigvalsh(factor.T @ cov_b @ factor)
    overlap = np.sqrt(np.clip(shared, 0, None)).sum()
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap))


def fid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Fréchet Inception distance of two sets of features, (n, 2048) and (m, 2048), n and m at least 2.

    It is biased upwards for few samples (two draws of 1,000 from the same faces are not at 0): state n and m with it,
    and compare only figures of equal counts. The papers' figures take 50,000.
    """
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError("FID needs at least two pictures on each side")
    a, b = (np.asarray(features, np.float64) for features in (features_a, features_b))
    return frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


class Quality(Stage):
    """Compares two pictures per row, each an encoded file or (H, W, 3) uint8 RGB pixels, of one size.

    psnr : float32, dB; infinite for equal pictures
    ssim, ms_ssim : float32, at most 1
    lpips : float32; NaN throughout with ``network=None``

    All four are NaN in rows that are not ``ok``. A row whose pictures differ in size, or are too small, fails.
    """

    name = "quality"
    outputs = ("psnr", "ssim", "ms_ssim", "lpips", "status", "reason")

    def __init__(
        self,
        original: str = "crop",
        compared: str = "image",
        network: str | None = "lpips-vgg16",
        device: models.Device = "cpu",
        threads: int = 1,
        at_once: int = 8,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """``original`` and ``compared`` name the columns; ``network`` is ``lpips-vgg16``, ``lpips-alexnet`` or None.

        ``at_once`` pairs of one size go through together.
        """
        self.original, self.compared, self.network = original, compared, network
        self.inputs = (original, compared)  # type: ignore[misc]
        self.device, self.threads, self.at_once, self.folder = device, threads, at_once, folder
        self.resources = resources or Resources()
        self._lpips: Lpips | None = None
        self._ready = False

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        if self.network is not None:
            self._lpips = Lpips.load(models.path(self.network, folder=self.folder)).to(_device(self.device))
        self._ready = True

    def __call__(self, batch: Batch) -> Batch:
        if not self._ready:
            self.setup()
        status, reason = outcomes(batch)
        measured = {name: np.full(len(status), np.nan, np.float32) for name in self.outputs[:4]}
        pairs = _pictures(self.name, batch, (self.original, self.compared), status, reason)
        for chosen in _alike(pairs, self.at_once):
            try:
                x, y = (_tensor([pairs[i][side] for i in chosen], self.device) for side in (0, 1))
                for name, values in self.measure(x, y).items():
                    measured[name][chosen] = values.cpu().numpy()
            except Exception as error:
                status[chosen], reason[chosen] = FAILED, explain(self.name, error)
        return {**batch, **measured, "status": status, "reason": reason}

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The four measures of (N, 3, H, W) in [0, 1], less LPIPS where there is no network. Raises ValueError."""
        values = {"psnr": psnr(x, y), "ssim": ssim(x, y), "ms_ssim": ms_ssim(x, y)}
        return values if self._lpips is None else {**values, "lpips": lpips(self._lpips, x, y)}


class InceptionFeatures(Stage):
    """The features that ``fid`` compares, of an encoded file or (H, W, 3) uint8 RGB pixels per row.

    inception : (2048,) float32; NaN in rows that are not ``ok``
    """

    name = "inception"
    outputs = ("inception", "status", "reason")

    def __init__(
        self,
        column: str = "image",
        device: models.Device = "cpu",
        threads: int = 1,
        at_once: int = 16,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """``at_once`` pictures of one size go through together."""
        self.column = column
        self.inputs = (column,)  # type: ignore[misc]
        self.device, self.threads, self.at_once, self.folder = device, threads, at_once, folder
        self.resources = resources or Resources()
        self._network: Inception | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        self._network = Inception.load(_device(self.device), self.folder)

    def __call__(self, batch: Batch) -> Batch:
        if self._network is None:
            self.setup()
        assert self._network is not None
        status, reason = outcomes(batch)
        features = np.full((len(status), WIDTH), np.nan, np.float32)
        pictures = _pictures(self.name, batch, (self.column,), status, reason)
        for chosen in _alike(pictures, self.at_once):
            try:
                x = _tensor([pictures[i][0] for i in chosen], self.device)
                features[chosen] = self._network.features(x).cpu().numpy()
            except Exception as error:
                status[chosen], reason[chosen] = FAILED, explain(self.name, error)
        return {**batch, "inception": features, "status": status, "reason": reason}


Pictures = dict[int, tuple[np.ndarray, ...]]
"""By the row's position its pictures, each (H, W, 3) uint8."""


def _pictures(stage: str, batch: Batch, columns: tuple[str, ...], status: np.ndarray, reason: np.ndarray) -> Pictures:
    """The decoded pictures of the live rows; a row that cannot be read gets its status and reason."""
    found: Pictures = {}
    for i in live({"status": status}):
        try:
            found[int(i)] = tuple(_pixels(batch[column][i]) for column in columns)
        except Undecodable as error:
            status[i], reason[i] = "unreadable", error.reason
        except Exception as error:
            status[i], reason[i] = FAILED, explain(stage, error)
    return found


def _pixels(cell: Any) -> np.ndarray:
    return cell if isinstance(cell, np.ndarray) else decode(cell or b"")


def _alike(pictures: Pictures, at_once: int) -> list[list[int]]:
    """The positions in groups of at most ``at_once`` whose pictures have the same sizes."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i, shown in pictures.items():
        groups.setdefault(tuple(picture.shape for picture in shown), []).append(i)
    return [group[start : start + at_once] for group in groups.values() for start in range(0, len(group), at_once)]


def _tensor(pictures: Sequence[np.ndarray], device: models.Device) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1]."""
    levels = torch.from_numpy(np.stack(pictures)).to(_device(device))
    return levels.permute(0, 3, 1, 2).float() / 255


def _device(device: models.Device) -> str:
    return "cuda" if device == "gpu" else "cpu"
