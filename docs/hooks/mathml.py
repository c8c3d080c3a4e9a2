"""Formulae as MathML, which browsers draw themselves: no script, no font from elsewhere."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
NAMESPACE = "http://www.w3.org/1998/Math/MathML"
OVERLINE, PRIME, SIMILAR = "\u2015", "\u2032", "\u223c"
BESIDE = "0.12em"  # the names of functions

ET.register_namespace("", NAMESPACE)


def as_mathml(page: str) -> str:
    """Return a page's HTML with the formulae of arithmatex as MathML.

    Raises:
        ValueError: for a command of LaTeX that is not known.
    """
    return FORMULA.sub(_converted, page)


def _converted(found: re.Match[str]) -> str:
    tag, text = found.groups()
    latex = html.unescape(text).strip()
    tree = ET.fromstring(convert(latex, display="block" if tag == "div" else "inline"))
    _mend(tree)
    for node in tree.iter():
        if node.text and node.text.startswith("\\"):
            raise ValueError(f"{node.text} in {latex} is no command that is known")
    return f'<{tag} class="formula">{ET.tostring(tree, encoding="unicode")}</{tag}>'


def _mend(node: ET.Element) -> None:
    """Make of a tree what browsers draw well without a font of mathematics.

    Long bars are borders, primes are no superscripts, and names of functions are operators.
    """
    kind, children = _kind(node), list(node)
    for child in children:
        _mend(child)
        if child.text == "~" and kind != "mover":  # no accent, but "is distributed as"
            child.text = SIMILAR
    if kind == "mover" and children[1].text == OVERLINE:
        _become(node, "mrow", children[:1])
        node.set("class", "bar")
    elif kind in ("msup", "msubsup") and children[-1].text == PRIME:
        prime = _element("mo", PRIME)
        prime.set("lspace", "0")
        base = _element("mrow")
        base.extend([children[0], prime])
        both = [base, *children[1:-1]]
        _become(node, "msub" if kind == "msubsup" else "mrow", both)
    elif kind in ("mi", "mo") and node.text and re.fullmatch("[A-Za-z]{2,}", node.text):
        node.tag = f"{{{NAMESPACE}}}mo"
        node.set("lspace", BESIDE)
        node.set("rspace", BESIDE)
    elif kind == "mtext" and node.text:
        node.text = node.text.replace("\\_", "_")


def _kind(node: ET.Element) -> str:
    return node.tag.removeprefix(f"{{{NAMESPACE}}}")


def _element(kind: str, text: str | None = None) -> ET.Element:
    made = ET.Element(f"{{{NAMESPACE}}}{kind}")
    made.text = text
    return made


def _become(node: ET.Element, kind: str, children: list[ET.Element]) -> None:
    node.tag = f"{{{NAMESPACE}}}{kind}"
    node[:] = children
