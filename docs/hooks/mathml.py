"""Formulae as MathML, which browsers draw themselves: no script, no font from elsewhere."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def as_mathml(page: str) -> str:
    """Return a page's HTML with the formulae of arithmatex as MathML."""
    return FORMULA.sub(_converted, page)


def _converted(found: re.Match[str]) -> str:
    tag, text = found.groups()
    display = "block" if tag == "div" else "inline"
    formula = convert(html.unescape(text).strip(), display=display)
    return f'<{tag} class="formula">{formula}</{tag}>'
