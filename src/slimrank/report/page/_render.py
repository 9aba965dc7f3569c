# SPDX-License-Identifier: Apache-2.0
"""A page from its data: its sections in their order."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slimrank._errors import FileError, SlimrankError
from slimrank.files import Json, as_object, from_text, to_text, write_bytes
from slimrank.report.page import _sections as sections
from slimrank.report.page._advice import result_advice
from slimrank.report.page._data import VERSION
from slimrank.report.page._frame import CHANGED, data_of, document, holds_data

# What pages that held no data had around the section of exported files, and after the last section.
OLD_MARKS, OLD_FOOTER = ("<!-- exported files -->", "<!-- end of exported files -->"), "\n<footer>"
# From top to bottom; a new section is a function of the data, and a row here.
SECTIONS: tuple[Callable[[Mapping[str, Json]], str], ...] = (
    sections.warnings,
    sections.verdict,
    sections.numbers,
    sections.advice,
    sections.pareto,
    sections.predicted_and_measured,
    sections.totals,
    sections.outputs,
    sections.exported,
    sections.costs,
    sections.curves,
    sections.scores,
    sections.layer_table,
    sections.channel_groups,
    sections.blocks,
    sections.left_alone,
    sections.notes,
    sections.reproduce,
)


def render_page(data: Mapping[str, Json]) -> str:
    """A page.

    Args:
        data: of ``study_data`` or ``result_data``.

    Returns:
        One HTML document that loads nothing.
    """
    body = "\n".join(text for text in (section(data) for section in SECTIONS) if text)
    return document(str(data["title"]), body, dict(data))


def write_page(path: Path, data: Mapping[str, Json]) -> None:
    """Writes a page, and its data beside it.

    Args:
        path: of the page; the data have its name with the suffix ``.json``.
        data: as for ``render_page``.

    Raises:
        FileError: one of them cannot be written, ``path`` names no file or a ``.json`` file itself, or a
            file of something else has the name of the data.
    """
    check_page_path(path)
    beside = path.with_suffix(".json")
    html = render_page(data)
    write_bytes(beside, f"{to_text(dict(data))}\n".encode())
    write_bytes(path, html.encode())


def check_page_path(path: Path) -> None:
    """Refuses a path to which no page can be written.

    Raises:
        FileError: as ``write_page``.
    """
    if not path.name:
        raise FileError(f"report {str(path)!r}: it names no file; give one, e.g. report.html")
    beside = path.with_suffix(".json")
    if not path.parent.is_dir():
        raise FileError(
            f"report {path}: it cannot be written: there is no folder {path.parent}; make it first"
        )
    if beside.exists() and not _is_data(beside):
        raise FileError(
            f"report {path}: its data go to {beside}, which is there and holds something else; give the page "
            "another name"
        )
    if beside == path:
        raise FileError(
            f"report {path}: its data go to a file with the suffix .json; give the page another, e.g. .html"
        )


def _is_data(path: Path) -> bool:
    """Whether a file holds the data of a page."""
    try:
        found = as_object(from_text(path.read_text(encoding="utf-8"), str(path)), str(path))
    except (OSError, ValueError, SlimrankError):
        return False
    return "report" in found


def page_data(html: str) -> dict[str, Json]:
    """The data of a page that was written before.

    Raises:
        FileError: no page of slimrank, one that was changed, or one of another version.
    """
    data = data_of(html)
    if data.get("report") != VERSION:
        raise FileError(
            f"it is a page of version {data.get('report')!r}, and this slimrank reads {VERSION}; save the "
            f"model "
            "again"
        )
    return data


def with_exported(html: str, exports: Sequence[Json]) -> str:
    """A page of a result that was written before, with these exported files in place of those it named.

    Args:
        html: the page.
        exports: all that it shall name, as by ``export_facts``.

    Returns:
        The page. One that was written before pages held their data gets the section at its end.

    Raises:
        FileError: no page of slimrank, one that was changed, or one of another version.
    """
    if holds_data(html) or OLD_FOOTER not in html:
        data = {**page_data(html), "exports": list(exports)}
        return render_page({**data, "advice": result_advice(data)})
    start, end = OLD_MARKS
    section = f"{start}\n{sections.exported({'exports': list(exports)})}\n{end}"
    before, mark, rest = html.partition(start)
    _, closing, after = rest.partition(end)
    if mark and closing:
        return f"{before}{section}{after}"
    if mark:
        raise FileError(CHANGED)
    before, footer, after = html.partition(OLD_FOOTER)
    return f"{before}\n{section}{footer}{after}"
