"""Claims of pyproject.toml: what is on disk is installed, and nothing of it lands beside other people's packages."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP = ("jobs", "pipeline", "privacy", "stages")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> set[str]:
    """The package folders on disk, as dotted names below ``facecrowd``."""
    return {
        "facecrowd." + ".".join(file.parent.relative_to(ROOT).parts)
        for top in TOP
        for file in (ROOT / top).rglob("__init__.py")
    }


def test_the_package_list_equals_the_folders_on_disk() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders())
    assert len(listed) == len(set(listed))


def test_every_folder_with_modules_is_a_package() -> None:
    for top in TOP:
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_top_of_the_namespace_is_no_package() -> None:
    assert not (ROOT / "__init__.py").exists()


def test_nothing_lands_at_the_top_of_site_packages() -> None:
    names = importlib.metadata.packages_distributions()
    ours = {name for name, distributions in names.items() if "facecrowd" in distributions}
    assert not ours & set(TOP)
    assert not {name for name in ours if not name.startswith(("facecrowd", "__editable__", "_"))}


def test_type_checkers_see_every_package() -> None:
    links = ROOT / ".typing" / "facecrowd"
    assert {link.name for link in links.iterdir()} == set(TOP)
    for link in links.iterdir():
        assert link.is_symlink()
        assert os.readlink(link) == f"../../{link.name}"
        assert link.resolve() == ROOT / link.name
        assert (link / "py.typed").exists()


def test_data_that_packages_need_is_declared() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["*"]
    for package, patterns in data.items():
        folder = ROOT / package.removeprefix("facecrowd.").replace(".", "/")
        for pattern in patterns if package != "*" else []:
            assert any(map(os.path.isfile, glob.glob(f"{folder}/{pattern}", recursive=True))), (package, pattern)


def test_every_weights_file_has_a_model_card_that_states_its_terms_and_every_card_its_file() -> None:
    folder = ROOT / "stages" / "weights"
    cards, files = ({file.stem for file in folder.glob(f"*.{end}")} for end in ("md", "safetensors"))
    assert cards == files
    assert {file.suffix for file in folder.iterdir() if file.is_file()} <= {".md", ".safetensors", ".py", ".typed"}
    for card in folder.glob("*.md"):
        text = card.read_text(encoding="utf-8")
        assert text.startswith(f"# {card.stem}\n"), card
        assert "non-commercial research only" in text.lower(), card


def test_the_console_script_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="facecrowd")
    assert script.value == "facecrowd.jobs.cli:main"
    assert callable(script.load())
