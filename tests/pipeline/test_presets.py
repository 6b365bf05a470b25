"""Claims of pipeline/presets.py: papers' sets of quasi-identifiers by name, in any policy, beside one's own names."""

from __future__ import annotations

from typing import Any

import pytest

from facecrowd.pipeline import presets
from facecrowd.pipeline.config import load, load_policy
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages.attributes import ATTRIBUTES

FIVE = ("Receding_Hairline", "Bushy_Eyebrows", "Narrow_Eyes", "Big_Nose", "Big_Lips")


def quasi(*given: str, **roles: Any) -> tuple[str, ...]:
    return load(None, {"policy.quasi_identifiers": list(given), **roles}).policy.quasi_identifiers


def test_a_preset_stands_for_the_attributes_of_its_paper() -> None:
    assert quasi("five-parts") == FIVE
    assert quasi("anonymousnet") == ATTRIBUTES
    assert len(ATTRIBUTES) == 40
    assert set(FIVE) < set(ATTRIBUTES)


def test_a_preset_may_stand_alone_without_a_list() -> None:
    assert load(None, {"policy.quasi_identifiers": "five-parts"}).policy.quasi_identifiers == FIVE


def test_a_preset_stands_beside_names_and_names_nothing_twice() -> None:
    assert quasi("Male", "five-parts") == ("Male", *FIVE)
    assert quasi("five-parts", "Big_Nose") == (*FIVE[:3], "Big_Lips", "Big_Nose")
    assert quasi("five-parts", "anonymousnet") == (*FIVE, *(n for n in ATTRIBUTES if n not in FIVE))


def test_what_has_another_role_is_left_out_of_a_preset() -> None:
    assert quasi("five-parts", **{"policy.sensitive": ["Big_Lips"]}) == FIVE[:4]
    policy = load_policy(
        None, {"quasi_identifiers": ["five-parts"], "sensitive": ["Big_Nose"], "insensitive": ["Narrow_Eyes"]}
    )
    assert policy.quasi_identifiers == ("Receding_Hairline", "Bushy_Eyebrows", "Big_Lips")


def test_a_policy_of_tables_takes_presets_too() -> None:
    assert load_policy(None, {"quasi_identifiers": "five-parts"}).quasi_identifiers == FIVE
    assert load_policy(None, {"quasi_identifiers": "all"}).quasi_identifiers == ("*",)


def test_a_name_that_nobody_knows_is_met_with_the_presets_and_the_forty() -> None:
    with pytest.raises(ConfigError) as error:
        quasi("anonymusnet")
    said = str(error.value)
    assert "\n" not in said
    assert "anonymusnet cannot be predicted" in said
    assert ", ".join(presets.PRESETS) in said
    assert ", ".join(ATTRIBUTES) in said


def test_without_a_predictor_a_folder_brings_no_attributes() -> None:
    with pytest.raises(ConfigError, match=r"the input brings none: give input.attributes, .* or attributes.predictor"):
        quasi("Male", **{"attributes.predictor": "none"})
