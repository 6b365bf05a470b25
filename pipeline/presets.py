"""Named sets of quasi-identifiers, as the papers have them. A policy takes a preset's name wherever it takes names.

anonymousnet : all 40 attributes of CelebA. Li and Lin, AnonymousNet, CVPR Workshops 2019, predict and obfuscate "40
    attributes" (section 5.1) and print "the full attribute list" as Figure 6 (caption of Figure 4)
five-parts : one attribute for each part of the face: hair, eyebrows, eyes, nose, lips. Li et al., Identity-Preserving
    Face Anonymization via Adaptively Facial Attributes Obfuscation, ACM Multimedia 2021, section 3 and Table 1

What a policy gives another role (``sensitive: [Attractive]``) is left out of a preset.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

FIVE_PARTS = ("Receding_Hairline", "Bushy_Eyebrows", "Narrow_Eyes", "Big_Nose", "Big_Lips")
PRESETS = ("anonymousnet", "five-parts")


def names(preset: str) -> tuple[str, ...]:
    """The attributes of a preset."""
    return {"anonymousnet": predictable(), "five-parts": FIVE_PARTS}[preset]


def predictable() -> tuple[str, ...]:
    """The attributes that predictors know: CelebA's 40."""
    # Imported where it is asked for: the networks behind it take a second to load, and most runs need none.
    from facecrowd.stages.attributes import ATTRIBUTES

    return ATTRIBUTES


def expanded(given: Sequence[str], others: Collection[str]) -> tuple[str, ...]:
    """Names and presets as names; of a preset, those that have no other role (``others``) and are not given anyway."""
    out: list[str] = []
    for name in given:
        if name in PRESETS:
            out += [n for n in names(name) if n not in others and n not in given and n not in out]
        else:
            out.append(name)
    return tuple(out)


def hint(predicted: bool) -> str:
    """What there is to choose from, for whoever named an attribute that nobody knows."""
    known = f"; what can be predicted: {', '.join(predictable())}" if predicted else ""
    return f"presets: {', '.join(PRESETS)}{known}"
