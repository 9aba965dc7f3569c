# SPDX-License-Identifier: Apache-2.0
"""The server of a plan that is edited in the browser."""

import os
from functools import cached_property
from html import escape
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path

from slimrank._errors import SlimrankError
from slimrank._study import Study
from slimrank.live._editor import Editor, StaleError, do
from slimrank.live._local import Live, LocalHandler, LocalServer, open_live
from slimrank.plan import LatencyTable, Plan
from slimrank.report import document


def edit_in_browser(
    plan_path: str | os.PathLike[str],
    study: Study,
    *,
    latencies: LatencyTable | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    port: int = 0,
    open_browser: bool = False,
) -> Live:
    """Edits a plan in the browser; it is for this machine only.

    Args:
        plan_path: file of the plan. It is never changed: what is saved goes to new files beside it.
        study: that the plan is of; it computes everything that the page shows. With its model, plans can be
            applied there.
        latencies: a table of times of this network (``slimrank.measure_latency``), to show what each plan
            takes, and to plan again for a latency; None for none.
        run_dir: of the study: plans there can be compared with this one, as those beside it; None for none.
        port: on which to listen; 0 for a free one.
        open_browser: also open the page.

    Returns:
        The server, which runs until it is closed; ``url`` is the address to open.

    Raises:
        FileError: the file cannot be read.
        PlanError: it is no plan, or one of another model.
        LatencyError: a table of another network.
        OptionError: the port is in use, or no port.
    """
    path = Path(plan_path)
    folder = None if run_dir is None else Path(run_dir)
    editor = Editor(study, Plan.load(path), path, latencies=latencies, run_dir=folder)
    try:
        return open_live(
            lambda number: _EditServer(number, editor, path.name), port, open_browser=open_browser
        )
    except SlimrankError:
        editor.close()
        raise


class _EditServer(LocalServer):
    """Of one plan."""

    def __init__(self, port: int, editor: Editor, name: str) -> None:
        # First: where the port is taken, the server closes itself at once.
        self.editor, self.name = editor, name
        super().__init__(port, _Handler)

    def let_go(self) -> None:
        """Lets the plan's file go."""
        self.editor.close()

    @cached_property
    def page(self) -> bytes:
        """The page, which asks for what it shows."""
        code = files("slimrank.live").joinpath("edit.js").read_text(encoding="utf-8")
        parts = "".join(
            f'<details class="part" open id="{kind}s"><summary><h2>{heading}</h2></summary>'
            '<div class="scroll"><table class="edited"><thead></thead><tbody></tbody></table></div>'
            "</details>\n"
            for kind, heading in (("layer", "Layers"), ("group", "Channel groups"), ("block", "Blocks"))
        )
        body = (
            f"<h1>{escape(self.name)}</h1>\n"
            '<p class="verdict" id="state" role="status">Reading the plan</p>\n'
            '<p class="soft" id="detail"></p>\n<div class="numbers" id="numbers"></div>\n'
            '<p class="tools under"><button id="replan">Replan the rest</button> '
            '<button id="undo">Undo</button> '
            '<button id="save">Save as a new plan</button> <button id="build">Apply</button></p>\n'
            '<p class="soft" id="built" hidden></p>\n<p class="warning" id="notices" hidden></p>\n'
            f'{parts}<details class="part" open><summary><h2>Beside another plan</h2></summary>'
            '<div class="scroll"><p class="tools"><select id="other" aria-label="other plan"></select> '
            '<label><input type="checkbox" id="all"> also what is the same</label></p>'
            '<table class="compared" id="compared"><thead></thead><tbody></tbody></table></div></details>\n'
            "<noscript><p>This page needs its script to edit a plan.</p></noscript>"
        )
        return document(f"{self.name}, edit", body, {}, code=code, connects=True).encode()


class _Handler(LocalHandler):
    server: _EditServer
    changes_at = "/do"

    def show(self, path: str) -> bool:
        """The page, or what it shows."""
        if path == "/":
            self.answer(HTTPStatus.OK, self.server.page)
        elif path == "/state":
            with self.server.one_at_a_time:
                facts = self.server.editor.facts()
            self.tell(HTTPStatus.OK, facts)
        else:
            return False
        return True

    def change(self, request: object) -> tuple[HTTPStatus, object]:
        """Changes the plan, and answers with what the page then shows."""
        editor = self.server.editor
        with self.server.changes():
            try:
                return HTTPStatus.OK, do(editor, request)
            except StaleError as error:
                return HTTPStatus.CONFLICT, {"error": str(error), "now": editor.facts()}
