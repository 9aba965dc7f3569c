# SPDX-License-Identifier: Apache-2.0
from html.parser import HTMLParser

from slimrank.report import ScoreLine, render_scores_html


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


LINES = [
    ScoreLine(layer="a<b", method="weight_svd", points=[(0.25, 0.5, "rank 1"), (0.5, 0.75, "rank 2")]),
    ScoreLine(layer="fc", method="spatial_svd", points=[(0.5, 1.0, "rank 3")]),
]


def test_every_line_has_a_chart_on_one_scale_and_loads_nothing() -> None:
    html = render_scores_html(LINES, baseline=1.0, lower_is_better=False, table="a<b 0.5")
    reader = Reader()
    reader.feed(html)
    circles = [attrs for tag, attrs in reader.tags if tag == "circle"]
    assert len([1 for tag, _ in reader.tags if tag == "figure"]) == 2
    # The worst score lies at the bottom, the best at the top: smaller y is higher.
    assert [float(circle["cy"] or 0) for circle in circles] == [84.0, 45.0, 6.0]
    assert [float(circle["cx"] or 0) for circle in circles] == [63.0, 120.0, 120.0]
    assert "a&lt;b" in html
    assert "a<b" not in html
    assert "higher is better" in html
    assert not any("src" in attrs or attrs.get("href", "data:,") != "data:," for _, attrs in reader.tags)


def test_equal_scores_make_no_scale_and_no_line_is_no_error() -> None:
    flat = [ScoreLine(layer="fc", method="weight_svd", points=[(0.5, 2.0, "")])]
    assert "lower is better" in render_scores_html(flat, baseline=2.0, lower_is_better=True, table="")
    assert "0 scores" in render_scores_html([], baseline=2.0, lower_is_better=True, table="")
