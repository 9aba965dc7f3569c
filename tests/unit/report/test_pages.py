# SPDX-License-Identifier: Apache-2.0
"""Pages of results and of studies, which share their frame."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import slimrank as sr
from slimrank.plan import Plan
from slimrank.records import (
    METRICS,
    Agreement,
    BlockDamage,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    LayerSpec,
    Note,
    OutputAgreement,
    Summary,
)
from slimrank.report import MadeFrom, page_data, render_page, result_data, study_data, write_page
from specs import other


def _result(summary: Summary, *, plan: Plan | None = None) -> str:
    return render_page(result_data(summary, plan))


def _study(
    title: str,
    specs: Sequence[LayerSpec],
    cost: Cost,
    notes: Sequence[Note],
    *,
    channels: ChannelMap | None = None,
    curves: Sequence[GroupCurve] = (),
    blocks: Sequence[BlockDamage] = (),
) -> str:
    data = study_data(title, specs, cost, notes, channels=channels, group_curves=curves, blocks=blocks)
    return render_page(data)


_VOID = {"meta", "link", "rect", "br"}


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
    return _study("a <study>", specs, cost, ())


def test_page_is_well_formed_and_says_what_it_was_given(summary: Summary) -> None:
    page = _result(summary)
    text = " ".join(_read(page).text)
    for expected in (
        summary.title,
        "1 of 3 layers compressed.",
        "1,500,000",
        "keep ratio 0.467",
        "spatial_svd v_h",
        "-0.30 points",
        "0.0231 nats per sample",
        "block.0.depthwise, block.1.depthwise",
        summary.layers[1].reason or "",
        summary.notes[0].text,
    ):
        assert expected in text
    assert 'title="1,000,000 MACs before, 200,000 after, keep ratio 0.200; spatial_svd v_h, rank 7"' in page


def test_page_escapes_every_string(summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost) -> None:
    evil = "<script>alert('x')</script>\"&"
    layer = replace(summary.layers[0], name=evil)
    left = replace(summary.layers[1], name=evil, reason=evil)
    note = replace(summary.notes[0], where=evil, text=evil)
    measured = replace(summary.measurements[0], name=evil, unit=evil)
    pages = [
        _result(
            replace(
                summary, title=evil, layers=(layer, left), notes=(note,), unit=evil, measurements=(measured,)
            )
        ),
        _study(evil, (replace(specs[1], name=evil, class_name=evil, reason=evil),), specs_cost, (note,)),
    ]
    for page in pages:
        # The page's data and its own script, and nothing that it was given.
        assert [name for tag, name, _ in _read(page).attributes if tag == "script"] == ["type", "id", "type"]
        assert page.count("<script") == 2
        assert "alert('x')</script>" not in page
        assert escape(evil) in page


def test_page_loads_nothing(summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost) -> None:
    for page in (_result(summary), _study_page(specs, specs_cost)):
        # The name of a namespace is no address that is opened.
        text = page.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|url\(|@import|<img|<iframe|fetch\(|XMLHttp|import\(", text)
        links = [value for _, name, value in _read(page).attributes if name in {"href", "src", "xlink:href"}]
        assert links == ["data:,"]
        assert "default-src 'none'" in page
        assert not re.search(r" on[a-z]+=", page)
        script = page[page.rindex('<script type="module">') + len('<script type="module">') :]
        script = script[: script.rindex("</script>")]
        digest = b64encode(sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in page


def test_page_follows_the_viewers_theme_and_fits_a_phone(summary: Summary) -> None:
    page = _result(summary)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_bars_are_lengths_of_the_largest_layer(summary: Summary) -> None:
    bars = re.findall(r'<i class="(.)" style="width:([\d.]+)%"', _result(summary))
    assert bars == [("b", "100"), ("a", "20"), ("k", "30"), ("k", "10")]


def test_a_long_name_is_whole_everywhere(summary: Summary) -> None:
    name = "encoder.layers.11.attention.output.projection"
    page = _result(replace(summary, layers=(replace(summary.layers[0], name=name),)))
    assert f"<span>{name}</span>" in page
    assert f"<th>{name}</th>" in page
    assert 'title="1,000,000 MACs before' in page


def test_the_page_is_drawn_from_the_data_that_it_holds(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    for page in (_result(summary), _study_page(specs, specs_cost)):
        data = page_data(page)
        assert render_page(data) == page
        assert render_page(json.loads(json.dumps(data))) == page
    data = page_data(_result(summary))
    assert [layer["name"] for layer in data["layers"]] == [layer.name for layer in summary.layers]  # type: ignore
    assert data["keep_ratio"] == pytest.approx(
        {metric: summary.after.metric(metric) / summary.before.metric(metric) for metric in METRICS}
    )


def test_data_of_another_version_are_refused(summary: Summary) -> None:
    data = {**page_data(_result(summary)), "report": 99}
    with pytest.raises(sr.FileError, match=r"page of version 99, and this slimrank reads 1; save the model"):
        page_data(render_page(data))


def test_a_page_and_its_data_are_written_side_by_side(summary: Summary, tmp_path: Path) -> None:
    data = result_data(summary)
    write_page(tmp_path / "page.html", data)
    assert json.loads((tmp_path / "page.json").read_text()) == json.loads(json.dumps(data))
    assert page_data((tmp_path / "page.html").read_text()) == json.loads(json.dumps(data))
    write_page(tmp_path / "page.html", data)
    with pytest.raises(sr.FileError, match=r"its data go to a file with the suffix \.json; give the page an"):
        write_page(tmp_path / "page.json", data)
    (tmp_path / "plan.json").write_text('{"steps": []}')
    with pytest.raises(sr.FileError, match=r"plan\.json, which is there and holds something else; give the"):
        write_page(tmp_path / "plan.html", data)
    assert (tmp_path / "plan.json").read_text() == '{"steps": []}'
    with pytest.raises(sr.FileError, match=r"there is no folder .*nowhere; make it first"):
        write_page(tmp_path / "nowhere" / "page.html", data)
    with pytest.raises(sr.FileError, match=r"it names no file; give one"):
        write_page(Path(), data)


@pytest.mark.parametrize("divergence", [None, 0.5])
def test_missing_divergence_is_said(summary: Summary, divergence: float | None) -> None:
    page = _result(replace(summary, divergence=divergence, damage=None))
    assert ("not measured" in page) == (divergence is None)
    assert ("held-out divergence" in page) == (divergence is not None)


def test_warnings_stand_on_top_and_are_not_among_the_notes(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    warning = Note(where="verify", text="the outputs <have> little left", is_warning=True)
    notes = (*summary.notes, warning)
    for page in (
        _result(replace(summary, notes=notes)),
        _study("s", specs, specs_cost, notes),
    ):
        _read(page)
        body = page[page.index("<body>") : page.index('<script type="application/json"')]
        box, told = body.index('<section class="warning"'), "verify: the outputs &lt;have&gt; little left"
        assert box < body.index(told) < body.index('<div class="numbers">')
        assert body.count("little left") == 1
        assert "<h2>Warning</h2>" in body
        assert "few samples" in body[body.index("<h2>Notes</h2>") :]
        # Seen in both themes, and on paper, where backgrounds are left out.
        assert re.search(r"\.warning \{ border: 2px solid var\(--warn\)", page)
        assert page.count("--warn: #") == 2
    assert "<h2>Warnings</h2>" in _result(replace(summary, notes=(warning, warning)))
    assert '<section class="warning"' not in _result(summary)


def test_the_agreement_stands_beside_the_divergence(summary: Summary, agreement: Agreement) -> None:
    page = _result(replace(summary, agreement=agreement))
    assert "nats per sample; predicted: 0.0187</p>" in page
    assert "of the size are left; 98.91 % same top-1; cosine 0.9981, relative error 0.064.</p>" in page
    assert "<dt>Held-out agreement, mean over 2 outputs</dt><dd>98.91 % same top-1; cosine 0.9981" in page
    tokens = replace(summary, divergence=2.48, agreement=Agreement({"": agreement["logits"]}, 2.48))
    page = _result(tokens)
    assert "<dd>2.48 nats per sample, 0.62 per position (4)</dd>" in page
    assert "<dd>98.91 % same top-1, lowest 91.2 % at position 2</dd>" in page
    assert "Held-out agreement" not in _result(summary)


def test_outputs_and_their_elements(summary: Summary, agreement: Agreement) -> None:
    page = _result(replace(summary, agreement=agreement))
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
    assert "<h2>Outputs</h2>" in _result(replace(summary, agreement=Agreement({"": agreement["box"]}, 0.1)))
    plain = replace(agreement["box"], by_element=(), elements=())
    assert "<h2>Outputs</h2>" not in _result(replace(summary, agreement=Agreement({"": plain}, 0.1)))
    page = _result(replace(summary, agreement=Agreement({"a": plain, "b": plain}, 0.1)))
    assert "<h2>Outputs</h2>" in page
    assert "<li><span>" not in page


@pytest.mark.parametrize(("count", "listed"), [(2, 2), (64, 64), (65, 8), (4096, 8)])
def test_of_many_elements_the_worst_are_listed(
    summary: Summary, agreement: Agreement, count: int, listed: int
) -> None:
    figures = tuple(index / count for index in range(count))
    box = replace(agreement["box"], by_element=figures, elements=(count,), shape=(count,))
    page = _result(replace(summary, agreement=Agreement({"": box}, 0.1)))
    assert page.count("<li><span>") == listed
    assert f"<li><span>[{count - 1}]</span>" in page
    assert f"the 8 elements of {count} that agree least" in page or count <= 64


def test_a_page_escapes_the_paths_of_outputs(summary: Summary, agreement: Agreement) -> None:
    evil = "<script>alert('x')</script>\"&"
    page = _result(replace(summary, agreement=Agreement({evil: agreement["box"], "b": agreement["box"]}, 1)))
    _read(page)
    assert page.count("<script") == 2
    assert page.count(escape(evil)) == 2


def test_study_page_shows_layers_reasons_and_notes(
    specs: tuple[LayerSpec, ...], specs_cost: Cost, summary: Summary
) -> None:
    text = " ".join(_read(_study("a <study>", specs, specs_cost, summary.notes)).text)
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
    _read(_result(replace(summary, before=zero, after=zero, layers=())))
    _read(_study_page((), zero))


def test_a_hundred_layers_make_a_small_page(summary: Summary, specs: tuple[LayerSpec, ...]) -> None:
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
    page = _result(replace(summary, layers=layers, agreement=agreement))
    assert page.count("<li><span>") == 24 * 64
    assert len(page.encode()) < 350_000
    assert len(_study_page(rows, summary.before).encode()) < 150_000


def test_damage_has_a_unit_of_its_own(summary: Summary) -> None:
    page = _result(replace(summary, damage_unit="share of weight energy"))
    assert "0.0187 share of weight energy" in page
    # It does not predict the divergence, beside which the card would show it.
    assert "predicted: " not in page
    assert "nats per sample; predicted: 0.0187" in _result(summary)


def test_page_shows_slimmed_layers_channels_that_stay_and_dropped_blocks(
    summary: Summary, slim_plan: Plan
) -> None:
    layers = (
        replace(summary.layers[0], slimmed="64 -> 24 outputs"),
        replace(summary.layers[1], slimmed="64 -> 24 inputs", reason=None),
        summary.layers[2],
    )
    page = _result(replace(summary, layers=layers), plan=slim_plan)
    text = " ".join(_read(page).text)
    arrow = "\N{RIGHTWARDS ARROW}"
    for expected in (
        "1 of 5 layers, 1 of 2 groups, 1 block compressed.",
        f"spatial_svd v_h, channels 64 {arrow} 24 outputs",
        f"channels 64 {arrow} 24 inputs",
        "Channel groups",
        "24 of 64",
        "Blocks that can be dropped whole",
        "dropped",
    ):
        assert expected in text
    # Left alone is the last of the three alone.
    assert "<dt>block.1.depthwise</dt>" in page
    # Nobody predicted these.
    assert _rows(page, "up") == [["up", "24 of 64", "1", "itself", "down + 1 more", "width + 1 more", "-"]]
    assert [row[:2] + row[-1:] for row in _rows(page, "extra")] == [["extra", "dropped", "-"]]
    known = replace(summary, group_damages={"up": 0.125}, block_damages={"extra": 0.25})
    told = _result(known, plan=slim_plan)
    assert (_rows(told, "up")[0][-1], _rows(told, "extra")[0][-1]) == ("0.125", "0.250")


def test_the_model_itself_has_a_name(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    done, alone, _ = summary.layers
    for layer in (done, alone):
        page = _result(replace(summary, layers=(replace(layer, name=""),)))
        assert len(_rows(page, "(model)")) == 1
        assert "<span>(model)</span>" in page
    page = _study_page((replace(specs[0], name=""),), specs_cost)
    assert _rows(page, "(model)")[0][1] == "conv2d"
    assert "<span>(model)</span>" in page
    assert 'title="55,296 MACs; weight_svd' in page
    assert "<dt>(model)</dt>" in _study_page((replace(specs[1], name=""),), specs_cost)


def test_study_page_shows_groups(
    specs: tuple[LayerSpec, ...],
    specs_cost: Cost,
    channels: ChannelMap,
    group_curves: Sequence[GroupCurve],
    block_damages: Sequence[BlockDamage],
) -> None:
    page = _study("s", specs, specs_cost, (), channels=channels, curves=group_curves, blocks=block_damages)
    text = " ".join(_read(page).text)
    for expected in (
        "4 groups, 2 can be slimmed; 1 block can be dropped",
        "attention.num_heads",
        "0.250",
        "Stay whole",
        "down, side",
        "an output",
        "can be dropped whole",
        "1.7 %",
    ):
        assert expected in text
    assert _study("s", specs, specs_cost, (), channels=ChannelMap()) == _study("s", specs, specs_cost, ())


def test_a_curve_of_plans_and_a_score_table_are_shown_where_they_are_given(summary: Summary) -> None:
    assert "Cost against damage" not in _result(summary)
    assert "Eval scores" not in _result(summary)
    point = {"budget": 0.5, "layers": 3, "groups": 1, "blocks": 0}
    pareto = {
        "metric": "macs",
        "unit": "nats per sample",
        "measured_unit": "nats per sample",
        "baseline": None,
        "knee": 1,
        "points": [
            {**point, "cost": 0.25, "predicted": 0.5, "measured": 0.75},
            {**point, "cost": 0.5, "predicted": 0.125, "measured": None},
            {**point, "cost": 0.75, "predicted": 0.0625, "measured": 0.03125},
        ],
    }
    scores = {
        "baseline": 0.9,
        "lower_is_better": False,
        "rows": [{"name": "stem", "method": "spatial_svd", "points": [[0.25, 0.5, 2], [0.5, None, 4]]}],
    }
    page = render_page(result_data(summary, pareto=pareto, scores=scores))
    _read(page)
    assert _rows(page, "0.5000") == [["0.5000", "0.125", "-", "3", "1", "0", "knee"]]
    plot = page[page.index('<div class="plot">') :]
    # Three points are predicted, two measured, and this model is marked.
    assert plot[: plot.index("</svg>")].count("<circle") == 5
    assert "chosen: 0.4667" in plot
    assert 'title="25.0%, 2">0.5<br>' in page
    assert "untouched 0.9, higher is better" in page
    # The one with a score sorts and copies by it; the picture of plans is in the unit of the damage.
    assert 'data-v="0.5" title="25.0%, 2"' in page
    assert '<table class="heat" data-tools>' in page
    assert "damage, nats per sample: " in page


def _curve_of_plans(measured_unit: str, *measured: float | None) -> dict[str, object]:
    points = [
        {
            "budget": share,
            "cost": share,
            "predicted": predicted,
            "measured": value,
            "layers": 1,
            "groups": 0,
            "blocks": 0,
        }
        for share, predicted, value in zip((0.25, 0.5, 0.75), (0.4, 0.1, 0.01), measured, strict=True)
    ]
    return {
        "metric": "macs",
        "unit": "nats per sample",
        "measured_unit": measured_unit,
        "baseline": 0.91 if measured_unit == "score" else None,
        "knee": 1,
        "points": points,
    }


def test_predicted_damage_stands_against_what_was_measured(summary: Summary) -> None:
    heading = "Predicted against measured damage"
    assert heading not in _result(summary)
    curve = _curve_of_plans("nats per sample", 0.8, None, 0.01)
    page = render_page(result_data(summary, pareto=curve))  # type: ignore[arg-type]
    _read(page)
    part = page[page.index(f"<h2>{heading}</h2>") :]
    part = part[: part.index("</details>")]
    # Two plans that were measured, and this model.
    assert part.count('<circle class="m"') == 3
    assert "<title>25.0% of the macs: predicted 0.4, measured 0.8</title>" in part
    assert "<title>this model: predicted 0.0187, measured 0.0231</title>" in part
    assert _rows(part, "25.0% of the macs") == [["25.0% of the macs", "0.400", "0.800", "2.000"]]
    # Equal numbers lie on the line, which goes from the bottom left to the top right.
    diagonal = re.search(r'<line class="guide" x1="(\d+)" y1="(\d+)" x2="(\d+)" y2="(\d+)"/>', part)
    equal = re.search(r'cx="(\d+)" cy="([\d.]+)"><title>75.0% of the macs', part)
    assert diagonal is not None
    assert equal is not None
    x1, y1, x2, y2 = (int(number) for number in diagonal.groups())
    x, y = (float(number) for number in equal.groups())
    assert (y - y1) / (y2 - y1) == pytest.approx((x - x1) / (x2 - x1), abs=0.01)
    # What is in another unit is not compared.
    assert heading not in _result(replace(summary, damage_unit="share of weight energy"))


def test_a_score_has_a_picture_of_its_own_scale(summary: Summary) -> None:
    page = render_page(result_data(summary, pareto=_curve_of_plans("score", 0.2, 0.8, 0.9)))  # type: ignore[arg-type]
    _read(page)
    assert "score (the original: 0.91): " in page
    assert page.count('<div class="plot">') == 2
    assert "Predicted against measured damage" not in page
    # On an even scale from the lowest score to the original's, 0.8 stands at 0.6 of 0.71.
    first = page[page.index('<div class="plot">') :]
    heights = [float(text) for text in re.findall(r'cy="([\d.]+)"><title>', first[: first.index("</svg>")])]
    assert (heights[0] - heights[1]) / (heights[0] - 8) == pytest.approx(0.6 / 0.71, abs=0.01)
    assert "<title>0.91</title>" in first


def test_advice_names_samples_and_training(summary: Summary, agreement: Agreement) -> None:
    few = Note(where="calibrate", text="48 samples give fewer than 10 rows; More samples help")
    texts = [
        line["text"]  # type: ignore[index, call-overload]
        for line in result_data(replace(summary, notes=(few,), agreement=agreement))["advice"]  # type: ignore[union-attr]
    ]
    assert "48 samples give fewer than 10 rows; More samples help." in texts
    assert not any("distill" in str(text) for text in texts)
    broken = Agreement({"box": replace(agreement["box"], lost=0.3)}, 0.1)
    texts = [line["text"] for line in result_data(replace(summary, agreement=broken))["advice"]]  # type: ignore
    assert any(str(text).startswith("The outputs lost 30% of what always") for text in texts)


def test_how_to_reproduce(summary: Summary) -> None:
    made = MadeFrom(call="slimrank.study(model, batches, seed=3)", seed=3, fingerprint={"weights": "f00"})
    data = result_data(summary, made=made)
    assert (data["call"], data["seed"], data["fingerprint"]) == (made.call, 3, {"weights": "f00"})
    assert data["versions"]["numpy"] == np.__version__  # type: ignore[index, call-overload]
    page = render_page(data)
    assert "<dt>study</dt><dd>slimrank.study(model, batches, seed=3)</dd>" in page
    assert "<dt>fingerprint: weights</dt><dd>f00</dd>" in page
    # Pages of older versions have neither.
    old = {key: value for key, value in data.items() if key not in ("call", "seed", "versions")}
    assert f"<dt>versions</dt><dd>slimrank {sr.__version__}</dd>" in render_page(old)


def _measured_curve(points: int = 30) -> Curve:
    """A curve of the first layer, measured at ranks 3 and 20."""
    ranks = np.arange(1, points + 1, dtype=np.int64)
    damage = 1.0 / ranks
    return Curve(
        layer="stem",
        method="spatial_svd",
        form="v_h",
        ranks=ranks,
        macs=ranks * 1_000,
        params=ranks * 10,
        bytes=ranks * 40,
        error=damage,
        damage=damage,
        anchors={20: 0.06, 3: 0.4},
    )


def test_measured_points_stand_on_the_curves_and_in_a_table(
    specs: tuple[LayerSpec, ...],
    specs_cost: Cost,
    channels: ChannelMap,
    group_curves: Sequence[GroupCurve],
) -> None:
    (group,) = group_curves
    up = other("up", "Linear", has_bias=True, reason="only its channels may go")
    data = study_data(
        "s",
        (*specs, up),
        specs_cost,
        (),
        channels=channels,
        curves=[_measured_curve()],
        group_curves=[replace(group, anchors={30: 0.24, 12: 9.0})],
    )
    (curve,) = data["layers"][0]["curves"]  # type: ignore[index, call-overload]
    # Of 55,296 MACs; the points of the curve have what was measured among them.
    assert curve["anchors"] == [[0.0543, 0.4, 3], [0.362, 0.06, 20]]
    assert {3, 20} <= {size for _, _, size in curve["points"]}
    # A number of units that the curve does not offer has no place on it.
    assert data["groups"][0]["anchors"] == [[0.469, 0.24, 30]]  # type: ignore[index, call-overload]
    page = render_page(data)
    _read(page)
    assert page.count('<circle class="m"') == 3
    assert "<title>measured at 36.2% (20): 0.06</title>" in page
    assert "dots were measured on held-out samples" in page
    assert _rows(page, "stem")[0] == ["stem", "spatial_svd v_h", "5.4 %", "3", "0.333", "0.400"]
    assert _rows(page, "up (group)") == [["up (group)", "channels", "46.9 %", "30", "0.250", "0.240"]]
    # The picture of a group opens the layer that makes it.
    assert page.count('<figure data-layer="0" ') == page.count('<figure data-layer="2" ') == 1
    del curve["anchors"], data["groups"][0]["anchors"]  # type: ignore[union-attr, arg-type, index, call-overload]
    old = render_page(data)
    assert '<circle class="m"' not in old
    assert "dots were measured" not in old


def test_the_chosen_rank_is_a_point_of_its_curve(summary: Summary) -> None:
    data = result_data(summary, curves=[_measured_curve(100)])
    (curve,) = data["layers"][0]["curves"]  # type: ignore[index, call-overload]
    assert 7 in {size for _, _, size in curve["points"]}
    assert 8 not in {size for _, _, size in curve["points"]}
    page = render_page(data)
    # At 7 % of the MACs of the layer, in a picture of 240 units with an edge of 8.
    ring = re.search(r'<circle class="chosen" cx="(\d+)"', page)
    assert ring is not None
    assert int(ring[1]) == pytest.approx(8 + 7_000 / 1_000_000 * 224, abs=1)


def test_a_damage_of_nothing_does_not_flatten_a_picture(summary: Summary) -> None:
    curve = _measured_curve(20)
    damage = curve.damage.copy()
    damage[-1] = 1e-13
    page = render_page(result_data(summary, curves=[replace(curve, damage=damage, anchors={})]))
    figure = page[page.index("<figure data-layer") :]
    label = re.search(r'aria-label="[^"]* from (\S+) to (\S+)"', figure[: figure.index("</figure>")])
    assert label is not None
    assert (label[1], label[2]) == ("1e-06", "1")
