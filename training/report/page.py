"""The Jinja environment of all pages.

The environment renders the templates in `training/` as HTML pages without scripts, links and fonts.

The module defines the filters and the escaping. The template report/base.html.jinja defines the style of every page.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from foldserve.service.figures import format_count, format_difference, format_figure, format_percent
from foldserve.training.text import format_name, printable


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("foldserve.training", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "difference": format_difference,
        "figure": format_figure,
        "name": format_name,
        "percent": format_percent,
        "printable": printable,
        "thousands": format_count,
    }
    return environment


def render_page(template: str, **values: Any) -> str:
    """Render a template as one HTML page.

    The caller must encode the page in UTF-8. template: the path of the template, relative to `training/`.
    """
    return _environment().get_template(template).render(values)
