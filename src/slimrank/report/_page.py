# SPDX-License-Identifier: Apache-2.0
"""The frame of a page: head, style sheet, tables, cards; plain text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

# Two themes under one set of names; the viewer's setting chooses.
_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5b6675; --line: #e1e5ea; --accent: #1f6feb;
  --pale: #bcd4f8; --idle: #aeb7c2; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151b; --card: #1a2029; --ink: #e4e9f0; --soft: #98a4b3; --line: #2c3440; --accent: #5b9bff;
  --pale: #2b476f; --idle: #566273; --warn: #e0a94a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
p { margin: .3rem 0; }
.lead, .soft, footer { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
  margin-top: 1rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr));
  margin-top: 1rem; }
.cards section { margin: 0; } .cards p { text-wrap: balance; }
.cards b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards h2 { font-size: .95rem; font-weight: 600; margin: 0; color: var(--soft); }
.meter { height: 8px; border-radius: 4px; background: var(--pale); margin: .5rem 0 .1rem; overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--accent); border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tr > :first-child { padding-left: 0; } tr > :last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 10.5rem; }
.n { text-align: right; white-space: nowrap; }
.w { white-space: nowrap; }
.idle td, .idle th { color: var(--soft); }
.under { margin-top: .9rem; }
dl { display: grid; grid-template-columns: fit-content(32rem) 1fr; gap: .3rem 1rem; margin: 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; }
@media (max-width: 40rem) { main { padding: 1rem .6rem 2rem; } section { padding: .8rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .cards { grid-template-columns: 1fr 1fr; gap: .6rem; } .cards b { font-size: 1.35rem; }
  table { font-size: .82rem; } th, td { padding: .3rem .35rem; } tbody th { min-width: 8.5rem; } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; color: var(--soft);
  margin-bottom: .6rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -1px; }
svg { display: block; width: 100%; }
svg text { font-size: 12px; fill: var(--ink); }
svg .v { fill: var(--soft); font-variant-numeric: tabular-nums; }
.b { fill: var(--pale); background: var(--pale); } .a { fill: var(--accent); background: var(--accent); }
.k { fill: var(--idle); background: var(--idle); }
.charts { display: grid; gap: .8rem 1.2rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
figure { margin: 0; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption span { color: var(--soft); margin-left: .5rem; }
.charts svg { border: 1px solid var(--line); border-radius: 6px; }
.charts line { stroke: var(--soft); stroke-dasharray: 4 3; } .charts circle { fill: var(--accent); }
.charts polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.warning { border: 2px solid var(--warn); border-left-width: 8px; } .warning h2 { color: var(--warn); }
.elements { display: grid; gap: .1rem 1rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  margin: .2rem 0 0; padding: 0; list-style: none; font-size: .85rem; font-variant-numeric: tabular-nums; }
.elements li { display: flex; justify-content: space-between; } .elements span { color: var(--soft); }
pre { font-size: .8rem; margin: 0; }
footer { margin-top: 1.2rem; font-size: .85rem; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""

# The page may load nothing at all; the policy makes a browser hold it to that.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, lead: str, body: str) -> str:
    """A whole page.

    Args:
        title: heading, plain text.
        lead: the line under it, plain text.
        body: HTML.

    Returns:
        One HTML document that refers to nothing outside itself.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n'
        "<footer>Costs are counted for one sample on the model itself (1 MAC = 2 FLOPs, attention products "
        "included; 1 kB = 1000 bytes). What is only predicted says so. Written by slimrank.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    """A framed part of a page; ``heading`` is plain text, ``body`` is HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def warning_box(texts: Sequence[str]) -> str:
    """A box that stands out, on paper too; texts are plain."""
    lines = "\n".join(f"<p>{escape(text)}</p>" for text in texts)
    heading = "Warning" if len(texts) == 1 else "Warnings"
    return f'<section class="warning" role="note">\n<h2>{heading}</h2>\n{lines}\n</section>'


def elements_list(heading: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Names and figures, as many side by side as fit; all plain text."""
    items = "".join(f"<li><span>{escape(a)}</span>{escape(b)}</li>" for a, b in pairs)
    return f'<div class="under">{escape(heading)}<ul class="elements">{items}</ul></div>'


def table(columns: Sequence[tuple[str, str]], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """A table that scrolls sideways where it must.

    Args:
        columns: heading and CSS class of each column.
        rows: cells as plain text, and whether the row stands back (nothing was done).

    Returns:
        HTML; the first cell of a row is its heading.
    """
    head = "".join(f"<th{_class(kind)}>{escape(text)}</th>" for text, kind in columns)
    kinds = [_class(kind) for _, kind in columns[1:]]
    lines = []
    for (first, *rest), idle in rows:
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(rest, kinds, strict=True))
        lines.append(f"<tr{_class('idle' if idle else '')}><th>{escape(first)}</th>{cells}</tr>")
    head = f"<thead><tr>{head}</tr></thead>"
    body = "<tbody>\n" + "\n".join(lines) + "\n</tbody>"
    return f'<div class="scroll"><table>\n{head}\n{body}\n</table></div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and texts, both plain text."""
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs) + "</dl>"


def card(heading: str, value: str, detail: str, share: float | None = None) -> str:
    """A number with its name.

    Args:
        heading: what it is, plain text.
        value: the number, plain text.
        detail: the line below, plain text.
        share: 0 to 1 for a meter below the value; None for none.

    Returns:
        HTML.
    """
    meter = ""
    if share is not None:
        meter = f'<div class="meter"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>'
    return (
        f"<section><h2>{escape(heading)}</h2><b>{escape(value)}</b>{meter}"
        f'<p class="soft">{escape(detail)}</p></section>'
    )


def cards(parts: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return '<div class="cards">\n' + "\n".join(parts) + "\n</div>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
