"""Findings -> one HTML file that needs nothing else: no script, no font, no address. It knows no measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: #fff; color: #222;
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem }
p { max-width: 48rem } .about { color: #555 }
figure { margin: 0 0 1rem } figure svg { width: 100%; height: auto; display: block }
figcaption { max-width: 48rem; border-left: 3px solid #1f6f8b; padding-left: .7rem }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
"""


@dataclass(frozen=True)
class Finding:
    """What was looked at, the sentence that says what it shows, and the picture: an <svg> or a table of text.

    table: rows of cells, the first being the head; each cell is escaped.
    """

    title: str
    sentence: str
    svg: str = ""
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """Findings of one experiment; `setting` says what was done."""

    title: str
    setting: str
    findings: tuple[Finding, ...]


def page(title: str, about: Sequence[str], sections: Sequence[Section]) -> str:
    """Give the whole document; `about` is a paragraph each."""
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="about">{escape(text)}</p>' for text in about)]
    for section in sections:
        body += [f"<section><h2>{escape(section.title)}</h2>", f"<p>{escape(section.setting)}</p>"]
        body += map(_finding, section.findings)
        body.append("</section>")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _finding(finding: Finding) -> str:
    picture = finding.svg.replace("<svg", f'<svg role="img" aria-label="{escape(finding.title)}"', 1)
    if finding.table:
        head, *rows = finding.table
        picture += "<table>" + _row("th", head) + "".join(_row("td", row) for row in rows) + "</table>"
    caption = f"<figcaption>{escape(finding.sentence)}</figcaption>"
    return f"<h3>{escape(finding.title)}</h3>\n<figure>{picture}{caption}</figure>"


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
