# SPDX-License-Identifier: Apache-2.0
from io import StringIO

import pytest
from rich.console import Console

from slimrank import _progress
from slimrank._progress import Phases


def test_a_text_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(_progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120))
    phases = Phases(shown=True)
    with phases.phase("scores", 3) as advance:
        advance(1)
        advance(1, "layer1.conv v_h 12: 0.934")
    assert "layer1.conv v_h 12: 0.934" in shown.getvalue()
    assert "2/3" in shown.getvalue()
    assert phases.seconds["scores"] > 0
