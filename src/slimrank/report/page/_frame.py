# SPDX-License-Identifier: Apache-2.0
"""The frame of a page: head, style sheet, script, and the pieces of HTML that all sections are made of."""

import base64
import binascii
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from slimrank._errors import FileError
from slimrank.files import Json, as_object, from_text

_DATA_START, _DATA_END = '<script type="application/json" id="data">', "</script>"
# The same of data that are packed.
_PACKED_START = '<script type="application/gzip" id="data">'
# Characters of data from which on they are packed: pages of a few layers can be read in an editor, and
# those of a thousand stay small.
_PACKED_FROM = 50_000
# Why a page is not read.
CHANGED = "it is no page that slimrank wrote, or was changed; save the model again"
# In JSON, these are the same letters; in a page, they could end the script.
_MARKUP = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


@cache
def _resource(name: str) -> str:
    return files("slimrank.report.page").joinpath(name).read_text(encoding="utf-8")


def document(
    title: str, body: str, data: Json = None, *, code: str | None = None, connects: bool = False
) -> str:
    """A whole page.

    Args:
        title: of the window, plain text.
        body: HTML.
        data: what the page shows, which its script reads; None for a page without script.
        code: of the script; None for that of reports, which can unpack its data.
        connects: the script may ask the server that the page came from.

    Returns:
        One HTML document that refers to nothing outside itself, and a policy that makes a browser hold it to
        that: the one script that may run is its own, by its digest.
    """
    style, script, allowed = _resource("page.css"), "", ""
    if data is not None:
        is_report = code is None
        code = _resource("page.js") if code is None else code
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        allowed = f"script-src 'sha256-{digest}'; " + ("connect-src 'self'; " if connects else "")
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
        if is_report and len(text) >= _PACKED_FROM:
            start = _PACKED_START
            # Without the time of writing, so that the same data give the same page.
            text = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        else:
            start = _DATA_START
            for letter, code_point in _MARKUP.items():
                text = text.replace(letter, code_point)
        kind = ' type="module"' if is_report else ""
        script = f"{start}{text}{_DATA_END}\n<script{kind}>{code}</script>\n"
    policy = f"default-src 'none'; {allowed}style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n"
        "<footer>Costs are counted for one sample on the model itself (1 MAC = 2 FLOPs, attention products "
        "included; 1 kB = 1000 bytes). What is only predicted says so. Written by slimrank.</footer>\n"
        f"</main>\n{script}</body>\n</html>\n"
    )


def holds_data(html: str) -> bool:
    """Whether a page has its data in it."""
    return _DATA_START in html or _PACKED_START in html


def data_of(html: str) -> dict[str, Json]:
    """The data that a page was drawn from.

    Args:
        html: the page.

    Returns:
        Its data.

    Raises:
        FileError: no page of slimrank, or one that was changed.
    """
    is_packed = _DATA_START not in html
    _, start, rest = html.partition(_PACKED_START if is_packed else _DATA_START)
    text, end, _ = rest.partition(_DATA_END)
    if not (start and end):
        raise FileError(CHANGED)
    if is_packed:
        try:
            text = gzip.decompress(base64.b64decode(text, validate=True)).decode()
        except (binascii.Error, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
            raise FileError(CHANGED) from error
    return as_object(from_text(text, "data of the page"), "data of the page")


def part(heading: str, body: str, *, count: str = "", is_open: bool = True) -> str:
    """A section that folds; ``heading`` and ``count`` are plain text, ``body`` is HTML; "" without a body."""
    if not body:
        return ""
    note = f'<span class="count">{escape(count)}</span>' if count else ""
    state = " open" if is_open else ""
    return (
        f'<details class="part"{state}>\n<summary><h2>{escape(heading)}</h2>{note}</summary>\n'
        f"<div>{body}</div>\n</details>"
    )


def box(heading: str, body: str, kind: str = "") -> str:
    """A framed part that does not fold; ``heading`` is plain text, ``body`` is HTML."""
    attributes = f' class="{kind}" role="note"' if kind else ""
    return f"<section{attributes}>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def paragraph(text: str, kind: str = "soft") -> str:
    """Plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and texts, both plain text; "" for none."""
    text = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs)
    return f"<dl>{text}</dl>" if text else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """The colours: CSS class and plain text of each."""
    items = "".join(f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries)
    return f'<div class="legend">{items}</div>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    values: Sequence[Sequence[float | None]] | None = None,
    layers: Sequence[int | None] | None = None,
    idle: Sequence[bool] | None = None,
    kind: str = "",
) -> str:
    """A table that scrolls sideways where it must, and that the script sorts, filters and copies.

    Args:
        columns: headings, plain text; ``>`` before one aligns its column right.
        rows: cells, plain text; the first of a row is its heading.
        values: the numbers behind the cells, to sort and copy by; None where a cell is text.
        layers: index of the layer that a row opens; None for none.
        idle: whether a row stands back.
        kind: CSS class of the table.

    Returns:
        HTML; "" without rows.
    """
    classes = [' class="n"' if column.startswith(">") else "" for column in columns]
    head = "".join(
        f"<th{css}>{escape(column.removeprefix('>'))}</th>"
        for column, css in zip(columns, classes, strict=True)
    )
    lines = []
    for index, row in enumerate(rows):
        numbers = [None] * len(row) if values is None else values[index]
        cells = "".join(
            _cell("td" if column else "th", css, cell, number)
            for column, (cell, css, number) in enumerate(zip(row, classes, numbers, strict=True))
        )
        layer = None if layers is None else layers[index]
        opens = "" if layer is None else f' data-layer="{layer}"'
        back = ' class="idle"' if idle is not None and idle[index] else ""
        lines.append(f"<tr{opens}{back}>{cells}</tr>")
    if not lines:
        return ""
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{name} data-tools>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )


def _plain(number: float) -> str:
    """A number, without ".0" where it is whole."""
    return str(int(number)) if number == int(number) else repr(number)


def _cell(tag: str, css: str, text: str, number: float | None) -> str:
    # A text that is the number needs no other one to be sorted by.
    value = "" if number is None or text == f"{number:g}" else f' data-v="{_plain(number)}"'
    return f"<{tag}{css}{value}>{escape(text)}</{tag}>"
