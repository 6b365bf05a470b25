"""What pycanon 1.3.6 says of small tables and of the CelebA attribute table: writes ``pycanon_results.json``.

pycanon's requirements are not this project's, so it runs in an environment of its own, once:

    python3 -m venv pycanon-env && pycanon-env/bin/pip install pycanon==1.3.6 pyarrow
    pycanon-env/bin/python tests/privacy/oracles/pycanon_results.py [celeba-attributes.parquet]

The small tables are written beside the results. Of the CelebA table only the aggregate figures are.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycanon import anonymity, metrics

OUTPUT = Path(__file__).with_suffix(".json")
Q12 = ["Male", "Young", "Black_Hair", "Blond_Hair", "Brown_Hair", "Big_Nose", "Big_Lips", "Eyeglasses", "Bangs"]
Q12 += ["Oval_Face", "Pointy_Nose", "Straight_Hair"]
SENSITIVE = ["Attractive", "Chubby", "Heavy_Makeup"]


def tables() -> dict[str, dict[str, Any]]:
    """Small tables, each with its quasi-identifiers and sensitive attributes."""
    rng = np.random.default_rng(7)
    mixed = {
        "Male": rng.integers(0, 2, 240).tolist(),
        "Age": rng.choice(["child", "adult", "senior"], 240, p=[0.2, 0.5, 0.3]).tolist(),
        "Hair": rng.choice(["black", "blond", "brown"], 240).tolist(),
        "Illness": rng.choice(["cold", "flu", "rash", "ulcer"], 240, p=[0.5, 0.3, 0.15, 0.05]).tolist(),
        "Income": rng.integers(0, 5, 240).tolist(),
    }
    even = {  # every class has every value, so nothing is infinite
        "Male": [m for m in (0, 1, 2) for _ in range(40)],
        "Illness": [
            v
            for counts in ((20, 12, 8), (16, 16, 8), (24, 8, 8))
            for v, n in zip(("cold", "flu", "rash"), counts, strict=True)
            for _ in range(n)
        ],
    }
    skewed = {"Male": [0] * 100, "Illness": ["flu"] * 98 + ["cold"] * 2}
    return {
        "mixed": {"columns": mixed, "quasi": ["Male", "Age", "Hair"], "sensitive": ["Illness"]},
        "mixed, two sensitive": {
            "columns": mixed,
            "quasi": ["Male", "Age", "Hair"],
            "sensitive": ["Illness", "Income"],
        },
        "coarse": {"columns": mixed, "quasi": ["Male"], "sensitive": ["Illness", "Income"]},
        "even": {"columns": even, "quasi": ["Male"], "sensitive": ["Illness"]},
        "skewed": {"columns": skewed, "quasi": ["Male"], "sensitive": ["Illness"]},
    }


def measured(frame: pd.DataFrame, quasi: list[str], sensitive: list[str]) -> dict[str, Any]:
    """Every model of pycanon."""
    c, l = anonymity.recursive_c_l_diversity(frame, quasi, sensitive)  # noqa: E741 the field's name
    return {
        "k": anonymity.k_anonymity(frame, quasi),
        "l": anonymity.l_diversity(frame, quasi, sensitive),
        "entropy_l": anonymity.entropy_l_diversity(frame, quasi, sensitive),
        "recursive": {"c": None if np.isnan(c) else float(c), "l": int(l)},
        "t": float(anonymity.t_closeness(frame, quasi, sensitive)),
        "delta": float(anonymity.delta_disclosure(frame, quasi, sensitive)),
        "beta": float(anonymity.basic_beta_likeness(frame, quasi, sensitive)),
        "beta_enhanced": float(anonymity.enhanced_beta_likeness(frame, quasi, sensitive)),
        "average_rir": float(metrics.average_rir(frame, quasi)),
        "max_rir": float(metrics.max_rir(frame, quasi)),
        "average_class": float(metrics.average_ecsize(frame, frame, quasi)),
        "discernibility": int(metrics.discernability_metric(frame, frame, quasi)),
    }


def main(celeba: str | None) -> None:
    small = tables()
    for table in small.values():
        table["pycanon"] = measured(pd.DataFrame(table["columns"]), table["quasi"], table["sensitive"])
    mixed = small["mixed"]
    frame = pd.DataFrame(mixed["columns"])
    null = pd.DataFrame({"Age": ["a", "a", None], "Illness": ["x", "y", "z"]})
    quirks = {
        "k of two rows alike and one null": anonymity.k_anonymity(null, ["Age"]),
        "l of the mixed table, its index labels reversed": anonymity.l_diversity(
            frame.set_index(frame.index[::-1]), mixed["quasi"], ["Income"]
        ),
        "l of the mixed table": anonymity.l_diversity(frame, mixed["quasi"], ["Income"]),
    }
    results: dict[str, Any] = {"pycanon": version("pycanon"), "tables": small, "quirks": quirks}
    if celeba:
        whole = pd.read_parquet(celeba).reset_index(drop=True)
        rest = [name for name in whole.columns[3:] if name not in Q12]
        results["celeba"] = [
            {"quasi": quasi, "sensitive": sensitive, "pycanon": measured(whole, quasi, sensitive)}
            for quasi, sensitive in (
                (Q12, SENSITIVE),
                ([*Q12, *rest[:8]], ["Smiling"]),
                (["Male", "Young"], SENSITIVE),
            )
        ]
    elif OUTPUT.exists():
        results["celeba"] = json.loads(OUTPUT.read_text())["celeba"]
    text = json.dumps(results, indent=1, default=int)
    # a column on a line
    lists = re.compile(r"\[\n[^\[\]{}]*\]")
    OUTPUT.write_text(lists.sub(lambda found: " ".join(found.group().split()), text) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
