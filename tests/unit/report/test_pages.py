# SPDX-License-Identifier: Apache-2.0
"""Pages of results and of studies, which share their frame."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from slimrank.plan import Plan
from slimrank.records import (
    Agreement,
    BlockDamage,
    ChannelMap,
    Cost,
    GroupCurve,
    LayerSpec,
    Note,
    OutputAgreement,
    Summary,
)
from slimrank.report import render_html, render_study_html

_VOID = {"meta", "link", "rect"}


class _Reader(HTMLParser):
    """Collects text, attributes and whether every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def _rows(page: str, name: str) -> list[list[str]]:
    """Cells of the table rows that start with a name."""
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    ]
    return [row for row in rows if row and row[0] == name]


def _study_page(specs: tuple[LayerSpec, ...], cost: Cost) -> str:
    return render_study_html("a <study>", specs, cost, ())


def test_page_is_well_formed_and_says_what_it_was_given(summary: Summary) -> None:
    text = " ".join(_read(render_html(summary)).text)
    for expected in (
        summary.title,
        "1 of 3 layers compressed.",
        "1,500,000",
        "of 1.50 M, keep ratio 0.467",
        "spatial_svd v_h",
        "-0.30 points",
        "0.0231 nats per sample",
        "block.0.depthwise, block.1.depthwise",
        summary.layers[1].reason or "",
        summary.notes[0].text,
        "stem: 1,000,000 MACs before, 200,000 after, keep ratio 0.200; spatial_svd v_h, rank 7",
    ):
        assert expected in text


def test_page_escapes_every_string(summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost) -> None:
    evil = "<script>alert('x')</script>\"&"
    layer = replace(summary.layers[0], name=evil)
    left = replace(summary.layers[1], name=evil, reason=evil)
    note = replace(summary.notes[0], where=evil, text=evil)
    measured = replace(summary.measurements[0], name=evil, unit=evil)
    pages = [
        render_html(
            replace(
                summary, title=evil, layers=(layer, left), notes=(note,), unit=evil, measurements=(measured,)
            )
        ),
        render_study_html(
            evil, (replace(specs[1], name=evil, class_name=evil, reason=evil),), specs_cost, (note,)
        ),
    ]
    for page in pages:
        assert "<script" not in page
        assert escape(evil) in page
        _read(page)


def test_page_loads_nothing(summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost) -> None:
    for page in (render_html(summary), _study_page(specs, specs_cost)):
        assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<img|<iframe", page)
        links = [value for _, name, value in _read(page).attributes if name in {"href", "src", "xlink:href"}]
        assert links == ["data:,"]
        assert "default-src 'none'" in page


def test_page_follows_the_viewers_theme_and_fits_a_phone(summary: Summary) -> None:
    page = render_html(summary)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_bars_are_lengths_of_the_largest_layer(summary: Summary) -> None:
    bars = re.findall(r'<rect class="(.)" y="\d+" width="([\d.]+)%"', render_html(summary))
    assert bars == [("b", "100"), ("a", "20"), ("k", "30"), ("k", "10")]


def test_a_long_name_is_cut_in_the_chart_and_whole_in_its_hint(summary: Summary) -> None:
    name = "encoder.layers.11.attention.output.projection"
    page = render_html(replace(summary, layers=(replace(summary.layers[0], name=name),)))
    assert '<text y="12">encoder.laye\N{HORIZONTAL ELLIPSIS}t.projection</text>' in page
    assert f"<title>{name}: 1,000,000 MACs before" in page


@pytest.mark.parametrize("divergence", [None, 0.5])
def test_missing_divergence_is_said(summary: Summary, divergence: float | None) -> None:
    page = render_html(replace(summary, divergence=divergence, damage=None))
    assert ("not measured" in page) == (divergence is None)
    assert ("held-out divergence" in page) == (divergence is not None)


def test_warnings_stand_on_top_and_are_not_among_the_notes(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    warning = Note(where="verify", text="the outputs <have> little left", is_warning=True)
    notes = (*summary.notes, warning)
    for page in (
        render_html(replace(summary, notes=notes)),
        render_study_html("s", specs, specs_cost, notes),
    ):
        _read(page)
        body = page[page.index("<body>") :]
        box, told = body.index('<section class="warning"'), "verify: the outputs &lt;have&gt; little left"
        assert box < body.index(told) < body.index('<div class="cards">')
        assert body.count("little left") == 1
        assert "<h2>Warning</h2>" in body
        assert "few samples" in body[body.index("<h2>Notes</h2>") :]
        # Seen in both themes, and on paper, where backgrounds are left out.
        assert re.search(r"\.warning \{ border: 2px solid var\(--warn\)", page)
        assert page.count("--warn: #") == 2
    assert "<h2>Warnings</h2>" in render_html(replace(summary, notes=(warning, warning)))
    assert '<section class="warning"' not in render_html(summary)


def test_the_agreement_stands_beside_the_divergence(summary: Summary, agreement: Agreement) -> None:
    page = render_html(replace(summary, agreement=agreement))
    assert (
        "nats per sample; predicted: 0.0187; 98.91 % same top-1; cosine 0.9981, relative error 0.064</p>"
        in page
    )
    assert "<dt>Held-out agreement, mean over 2 outputs</dt><dd>98.91 % same top-1; cosine 0.9981" in page
    tokens = replace(summary, divergence=2.48, agreement=Agreement({"": agreement["logits"]}, 2.48))
    page = render_html(tokens)
    assert "<dd>2.48 nats per sample, 0.62 per position (4)</dd>" in page
    assert "<dd>98.91 % same top-1, lowest 91.2 % at position 2</dd>" in page
    assert "agreement" not in render_html(summary)


def test_outputs_and_their_elements(summary: Summary, agreement: Agreement) -> None:
    page = render_html(replace(summary, agreement=agreement))
    _read(page)
    assert _rows(page, "logits") == [
        [
            *("logits", "4x50", "categorical", "2.48 nats", "0.62 (4)"),
            *("98.91 %", "-", "-", "91.2 % at position 2"),
        ]
    ]
    assert "logits: same top-1 at each position<ul" in page
    assert "<li><span>2</span>91.2 %</li>" in page
    assert "<li><span>[3]</span>0.12</li>" in page
    # One output with several elements, one without, two without.
    assert "<h2>Outputs</h2>" in render_html(
        replace(summary, agreement=Agreement({"": agreement["box"]}, 0.1))
    )
    plain = replace(agreement["box"], by_element=(), elements=())
    assert "<h2>Outputs</h2>" not in render_html(replace(summary, agreement=Agreement({"": plain}, 0.1)))
    page = render_html(replace(summary, agreement=Agreement({"a": plain, "b": plain}, 0.1)))
    assert "<h2>Outputs</h2>" in page
    assert "<li>" not in page


@pytest.mark.parametrize(("count", "listed"), [(2, 2), (64, 64), (65, 8), (4096, 8)])
def test_of_many_elements_the_worst_are_listed(
    summary: Summary, agreement: Agreement, count: int, listed: int
) -> None:
    figures = tuple(index / count for index in range(count))
    box = replace(agreement["box"], by_element=figures, elements=(count,), shape=(count,))
    page = render_html(replace(summary, agreement=Agreement({"": box}, 0.1)))
    assert page.count("<li>") == listed
    assert f"<li><span>[{count - 1}]</span>" in page
    assert f"the 8 elements of {count} that agree least" in page or count <= 64


def test_a_page_escapes_the_paths_of_outputs(summary: Summary, agreement: Agreement) -> None:
    evil = "<script>alert('x')</script>\"&"
    page = render_html(
        replace(summary, agreement=Agreement({evil: agreement["box"], "b": agreement["box"]}, 1))
    )
    _read(page)
    assert "<script" not in page
    assert page.count(escape(evil)) == 2


def test_study_page_shows_layers_reasons_and_notes(
    specs: tuple[LayerSpec, ...], specs_cost: Cost, summary: Summary
) -> None:
    text = " ".join(_read(render_study_html("a <study>", specs, specs_cost, summary.notes)).text)
    for expected in (
        "a <study>",
        "1 of 2 layers can be compressed.",
        "16x3x3x3",
        "55.3 k, 92.2 %",
        "(outside layers)",
        "never called",
        summary.notes[0].text,
    ):
        assert expected in text


def test_an_empty_result_still_gives_a_page(summary: Summary) -> None:
    zero = Cost(macs=0, params=0, bytes=0)
    _read(render_html(replace(summary, before=zero, after=zero, layers=())))
    _read(_study_page((), zero))


def test_a_hundred_layers_stay_under_200_kb(summary: Summary, specs: tuple[LayerSpec, ...]) -> None:
    output = OutputAgreement(
        family="gaussian",
        shape=(64,),
        positions=1,
        divergence=0.1,
        lost=0.1,
        cosine=0.9,
        relative_error=0.3,
        by_element=tuple(0.1 + index / 1000 for index in range(64)),
        elements=(64,),
    )
    agreement = Agreement({f"hidden_states[{index}]": output for index in range(24)}, 0.1)
    name = "encoder.layers.{}.attention.output.a_rather_long_projection_name"
    layers = tuple(replace(summary.layers[i % 2], name=name.format(i)) for i in range(100))
    rows = tuple(replace(specs[i % 2], name=name.format(i)) for i in range(100))
    page = render_html(replace(summary, layers=layers, agreement=agreement))
    assert page.count("<li>") == 24 * 64
    assert len(page.encode()) < 200_000
    assert len(_study_page(rows, summary.before).encode()) < 200_000


def test_damage_has_a_unit_of_its_own(summary: Summary) -> None:
    page = render_html(replace(summary, damage_unit="share of weight energy"))
    assert "0.0187 share of weight energy" in page
    # It does not predict the divergence, beside which the card would show it.
    assert "predicted: " not in page
    assert "nats per sample; predicted: 0.0187" in render_html(summary)


def test_page_shows_slimmed_layers_channels_that_stay_and_dropped_blocks(
    summary: Summary, slim_plan: Plan
) -> None:
    layers = (
        replace(summary.layers[0], slimmed="64 -> 24 outputs"),
        replace(summary.layers[1], slimmed="64 -> 24 inputs", reason=None),
        summary.layers[2],
    )
    page = render_html(replace(summary, layers=layers), plan=slim_plan)
    text = " ".join(_read(page).text)
    arrow = "\N{RIGHTWARDS ARROW}"
    for expected in (
        "1 of 5 layers, 1 of 2 groups, 1 block compressed.",
        f"spatial_svd v_h, channels 64 {arrow} 24 outputs",
        f"channels 64 {arrow} 24 inputs",
        "Channels that stay",
        "24 of 64",
        "up: 24 of 64 units of 1 stay; made by up, read by down + 1 more",
        "heads: 4 of 4 units of 8 stay",
        "Dropped blocks",
    ):
        assert expected in text
    # Left alone is the last of the three alone.
    assert "<dt>block.1.depthwise</dt>" in page
    # Nobody predicted these.
    assert _rows(page, "up") == [["up", "channel_pruning", "24 of 64", "up", "down + 1 more", "-"]]
    assert _rows(page, "extra") == [["extra", "dropped", "1.00 k", "20.0 %", "500", "-"]]
    known = replace(summary, group_damages={"up": 0.125}, block_damages={"extra": 0.25})
    told = render_html(known, plan=slim_plan)
    assert (_rows(told, "up")[0][-1], _rows(told, "extra")[0][-1]) == ("0.125", "0.250")
    chart = page[page.index("Channels that stay") :]
    bars = re.findall(r'<rect class="(.)" y="\d+" width="([\d.]+)%"', chart)
    assert bars == [("b", "100"), ("a", "37.5"), ("k", "50")]


def test_the_model_itself_has_a_name(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    done, alone, _ = summary.layers
    for layer in (done, alone):
        page = render_html(replace(summary, layers=(replace(layer, name=""),)))
        assert len(_rows(page, "(model)")) == 1
        assert "(model): " in page
        assert ">(model)</text>" in page
    page = _study_page((replace(specs[0], name=""),), specs_cost)
    assert _rows(page, "(model)")[0][1] == "conv2d"
    assert ">(model)</text>" in page
    assert "(model): 55,296 MACs; weight_svd" in page
    assert "<dt>(model)</dt>" in _study_page((replace(specs[1], name=""),), specs_cost)


def test_a_plan_without_groups_adds_nothing_to_the_page(summary: Summary, slim_plan: Plan) -> None:
    step = replace(slim_plan.steps[0], groups={}, dropped=())
    assert render_html(summary, plan=replace(slim_plan, steps=(step,))) == render_html(summary)


def test_study_page_shows_groups(
    specs: tuple[LayerSpec, ...],
    specs_cost: Cost,
    channels: ChannelMap,
    group_curves: Sequence[GroupCurve],
    block_damages: Sequence[BlockDamage],
) -> None:
    page = render_study_html(
        "s", specs, specs_cost, (), channels=channels, curves=group_curves, blocks=block_damages
    )
    text = " ".join(_read(page).text)
    for expected in (
        "4 groups, 2 can be slimmed; 1 block can be dropped",
        "attention.num_heads",
        "0.250",
        "Stay whole",
        "down, side",
        "an output",
        "Can be dropped whole",
        "1.7 %",
    ):
        assert expected in text
    assert render_study_html("s", specs, specs_cost, (), channels=ChannelMap()) == render_study_html(
        "s", specs, specs_cost, ()
    )
