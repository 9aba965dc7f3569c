# SPDX-License-Identifier: Apache-2.0
"""``slimrank explain``."""

from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.files import Store
from slimrank.measured import read_study
from slimrank.planning import check_steps
from slimrank.report import explain_layer


@click.command(cls=Command)
@click.argument("study_dir", metavar="RUN", type=PATH)
@click.argument("layer")
@click.option("--plan", "plan_path", type=PATH, help="Also what this plan does to the layer, and why.")
def explain(study_dir: Path, layer: str, plan_path: Path | None) -> Answer:
    """Say what the study in RUN found of LAYER, and what each choice for it would cost."""
    record = read_study(Store(study_dir))
    chosen = None if plan_path is None else sr.Plan.load(plan_path)
    if chosen is not None:
        check_steps(record, chosen)
    found = explain_layer(record, layer, chosen, unit=record.unit, width=None)
    return Answer(text=found.text, facts=found.facts)
