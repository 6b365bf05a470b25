from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

settings.register_profile("facecrowd", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("facecrowd")


SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session")
def lfw() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 512) of the LFW photos beside the checkout by buffalo_sc, and the name of each person."""
    photos = sorted(SHARED.glob("data/lfw/*/*.jpg"))
    models = SHARED / "models/insightface/models/buffalo_sc"
    if not photos or not models.exists():
        pytest.skip("LFW and the buffalo_sc models are not beside the checkout")
    import cv2
    import onnxruntime
    from insightface.model_zoo import get_model
    from insightface.utils import face_align

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    detector, recogniser = (
        get_model(str(models / name), providers=["CPUExecutionProvider"], sess_options=options)
        for name in ("det_500m.onnx", "w600k_mbf.onnx")
    )
    detector.prepare(-1, input_size=(256, 256), det_thresh=0.4)
    embeddings, people = [], []
    for photo in photos:
        pixels = cv2.imread(str(photo))
        boxes, landmarks = detector.detect(pixels)
        if len(boxes):
            sides = boxes[:, 2:4] - boxes[:, :2]
            offset = (boxes[:, :2] + boxes[:, 2:4]) / 2 - np.array(pixels.shape[1::-1]) / 2
            central = int(np.argmax(sides.prod(axis=1) - 2 * (offset**2).sum(axis=1)))
            embeddings.append(recogniser.get_feat(face_align.norm_crop(pixels, landmarks[central], 112)).ravel())
            people.append(photo.parent.name)
    return np.array(embeddings, dtype=np.float32), np.array(people)


@pytest.fixture(scope="session")
def celeba() -> pa.Table:
    """The real attribute table, where it lies beside the checkout."""
    path = SHARED / "data/celeba-attributes.parquet"
    if not path.exists():
        pytest.skip("the CelebA attribute table is not beside the checkout")
    return pq.read_table(path)
