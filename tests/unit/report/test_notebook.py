# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows: short tables that load nothing, style only themselves and escape every name."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

import slimrank as sr
from slimrank.pareto import ParetoPoint
from slimrank.plan import Plan
from slimrank.records import ChannelMap, Cost, LayerSpec, Note, Summary
from slimrank.report import notebook_html, plan_notebook, result_notebook, study_notebook
from slimrank.scores import ScoreEntry


class _Reader(HTMLParser):
    """Cells of every table; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(html: str) -> _Reader:
    """The tables, once it is clear that they load nothing and have no style but their own."""
    found = _Reader(html)
    assert found.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert found.attributes <= {"style", "colspan"}
    # What a notebook does not set by itself would be unreadable on one of its two backgrounds.
    assert "color:#" not in html
    assert "background" not in html
    return found


def test_names_are_escaped_and_numbers_stand_right() -> None:
    name = "<script>alert('&')</script>"
    html = notebook_html(name, [f"{name} line"], [(("layer", ">macs"), [(name, "12")])])
    assert name not in html
    assert read(html).rows == [["layer", "macs"], [name, "12"]]
    assert html.count("text-align:right") == 2


def test_long_tables_are_cut_and_say_so() -> None:
    rows = [(str(number),) for number in range(45)]
    found = read(notebook_html("t", [], [(("n",), rows), (("empty",), [])]))
    assert len(found.rows) == 32
    assert found.rows[-1] == ["and 15 more; summary() has all"]


def test_a_study(specs: tuple[LayerSpec, ...], specs_cost: Cost, channels: ChannelMap) -> None:
    notes = [Note(where="data", text="<few> samples", is_warning=True), Note(where="data", text="quiet")]
    html = study_notebook(specs, specs_cost, notes, channels=channels)
    found = read(html)
    assert [row[0] for row in found.rows][:3] == ["layer", "stem", "spare"]
    assert found.rows[2][1] == "Own<Linear>"
    assert "4 groups, 2 can be slimmed; 1 block can be dropped" in html
    assert "Warning: data: &lt;few&gt; samples" in html
    assert "quiet" not in html


def test_a_plan(slim_plan: Plan) -> None:
    html = slim_plan._repr_html_()
    assert html == plan_notebook(slim_plan)
    rows = read(html).rows
    assert ["up", "channel_pruning", "24 of 64"] in [row[:3] for row in rows]
    assert ["down", "weight_svd", "linear", "4"] in [row[:4] for row in rows]
    assert "predicted damage 0.250" in html
    read(Plan(steps=(), before=Cost(macs=1, params=1, bytes=4), has_bias=True)._repr_html_())


def test_a_result(summary: Summary, slim_plan: Plan) -> None:
    html = result_notebook(replace(summary, damage=None), slim_plan)
    rows = read(html).rows
    assert ["MACs", "1.50 M", "700 k", "0.467"] in rows
    assert ["accuracy", "96.30 %", "96.00 %", "-0.30 points"] in rows
    assert "stem" in [row[0] for row in rows]
    assert "half &lt;of&gt; it &amp; more" in html


def test_scores() -> None:
    entry = ScoreEntry(method="weight_svd", form="linear", rank=16, keep_ratio=0.5, score=0.75)
    table = sr.Scores(
        fingerprint={},
        baseline=0.875,
        lower_is_better=False,
        methods=("weight_svd",),
        candidates=(0.5,),
        entries={"<fc>": (entry,)},
    )
    assert read(table._repr_html_()).rows == [["layer", "method", "0.50"], ["<fc>", "weight_svd", "0.7500"]]


@pytest.mark.parametrize("baseline", [None, 0.9])
def test_a_curve_of_plans(slim_plan: Plan, baseline: float | None) -> None:
    point = ParetoPoint(budget=0.5, cost=0.4, predicted=0.25, measured=0.75, plan=slim_plan)
    curve = sr.Pareto(metric="macs", points=(point,), unit="nats", measured_unit="nats", baseline=baseline)
    head, row = read(curve._repr_html_()).rows
    assert head[3] == ("measured" if baseline is None else "score")
    assert row == [
        "0.5000",
        "0.4000",
        "0.250",
        "0.750" if baseline is None else "0.75",
        "1",
        "1",
        "1",
        "<- knee",
    ]
    assert read(replace(curve, points=())._repr_html_()).rows == []
