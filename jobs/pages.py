"""Pages: one file each, no script, nothing from elsewhere; a template of ``jobs/`` and the style that all share."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jinja2
from markupsafe import Markup

STYLE = "page.css"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_text),
    )


def _text(name: str) -> str:
    return importlib.resources.files("facecrowd.jobs").joinpath(name).read_text(encoding="utf-8")


def page(template: str, values: Mapping[str, Any]) -> str:
    """The page that a template makes of values, which it escapes.

    A browser that reads it takes no style but the page's own, by its hash, and fetches nothing.
    """
    style = _text(STYLE)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    text = _environment().get_template(template).render(**values, style=Markup(style), rules=Markup(rules))
    return text.lstrip()
