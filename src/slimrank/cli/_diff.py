# SPDX-License-Identifier: Apache-2.0
"""``slimrank diff``."""

from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.plan import differences
from slimrank.report import difference_facts


@click.command(cls=Command)
@click.argument("path", metavar="A", type=PATH)
@click.argument("other_path", metavar="B", type=PATH)
def diff(path: Path, other_path: Path) -> Answer:
    """Show what the plan in B does otherwise than the plan in A.

    Layers, channel groups and blocks that differ; then what both plans keep of the model and predict.
    """
    plan, other = sr.Plan.load(path), sr.Plan.load(other_path)
    facts = difference_facts(plan, other)
    kinds = [row.kind for row in differences(plan, other)]
    counts = [f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in dict.fromkeys(kinds)]
    parts = [f"{path} (this), {other_path} (other){': ' * bool(counts)}{', '.join(counts)}"]
    if not facts["same_model"]:
        parts.append("The two plans are for different models: what one of them does not have is left alone.")
    return Answer(text="\n".join([*parts, plan.diff(other)]), facts=facts)
