from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

settings.register_profile("facecrowd", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("facecrowd")


@pytest.fixture(scope="session")
def celeba() -> pa.Table:
    """The real attribute table, where it lies beside the checkout."""
    path = Path(__file__).parents[2].parent / "shared/data/celeba-attributes.parquet"
    if not path.exists():
        pytest.skip("the CelebA attribute table is not beside the checkout")
    return pq.read_table(path)
