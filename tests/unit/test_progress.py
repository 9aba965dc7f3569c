# SPDX-License-Identifier: Apache-2.0
from io import StringIO

import pytest

import seams


def test_a_text_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    phases = seams.Phases(shown=True)
    with phases.phase("scores", 3) as advance:
        advance(1)
        advance(1, "layer1.conv v_h 12: 0.934")
    assert "layer1.conv v_h 12: 0.934" in shown.getvalue()
    assert "2/3" in shown.getvalue()
    assert phases.seconds["scores"] > 0
