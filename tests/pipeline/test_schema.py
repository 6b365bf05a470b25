"""Claims of pipeline/schema.py: manifests have declared columns, and the data dictionary is made from them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.schema import RELEASED, SHARD, WORKSPACE, Manifest, dictionary

DICTIONARY = Path(__file__).parents[2] / "docs" / "data-dictionary.md"


def test_the_data_dictionary_in_docs_is_the_schemas() -> None:
    """Make it anew by: python -m facecrowd.pipeline.schema > docs/data-dictionary.md"""
    assert DICTIONARY.read_text(encoding="utf-8") == dictionary()


@pytest.mark.parametrize("manifest", [RELEASED, SHARD, *WORKSPACE], ids=lambda m: m.name)
def test_every_column_has_a_meaning_and_a_name_of_its_own(manifest: Manifest) -> None:
    names = [column.name for column in manifest.columns]
    assert len(names) == len(set(names))
    assert all(column.meaning for column in manifest.columns)
    assert manifest.arrow.names == names


def test_no_released_column_is_one_that_leads_to_a_source() -> None:
    private = {"photo", "path", "face_id", "subject", "subject_id", "part", "row", "run", "embedding", "crop"}
    assert not private & {column.name for manifest in (RELEASED, SHARD) for column in manifest.columns}


def test_the_parts_of_a_workspace_have_the_declared_schemas(released: Outcome) -> None:
    found = set()
    for manifest in WORKSPACE:
        for part in Path(released.workspace.root).glob(f"tables/{manifest.name}/*/part-*.parquet"):
            assert pq.read_schema(part) == manifest.arrow
            found.add(manifest.name)
    assert found == {"photos", "faces", "plan", "members", "surrogates", "rendered", "link"}
