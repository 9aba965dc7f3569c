# SPDX-License-Identifier: Apache-2.0
"""Values in; text, a page or JSON out."""

from slimrank.report._agreement import agreement_text
from slimrank.report._curve import render_curve
from slimrank.report._explain import Explanation, explain_layer
from slimrank.report._exported import (
    export_facts,
    exports_from_facts,
    int8_facts,
    named_in,
    with_file,
)
from slimrank.report._facts import (
    agreement_facts,
    cost_facts,
    difference_facts,
    plan_facts,
    result_facts,
    study_facts,
    warning_facts,
)
from slimrank.report._groups import render_groups
from slimrank.report._notebook import notebook_html, plan_notebook, result_notebook, study_notebook
from slimrank.report._numbers import finite_or_none, format_damage
from slimrank.report._plot import Plot, draw_figure
from slimrank.report._scores_page import ScoreLine, render_scores_html
from slimrank.report._table import render_table
from slimrank.report._text import render_layers, render_plan, render_text
from slimrank.report._words import short_name, slimmed_text
from slimrank.report.page import (
    MadeFrom,
    check_page_path,
    document,
    page_data,
    render_page,
    result_data,
    study_data,
    with_exported,
    with_times,
    write_page,
)

__all__ = [
    "Explanation",
    "MadeFrom",
    "Plot",
    "ScoreLine",
    "agreement_facts",
    "agreement_text",
    "check_page_path",
    "cost_facts",
    "difference_facts",
    "document",
    "draw_figure",
    "explain_layer",
    "export_facts",
    "exports_from_facts",
    "finite_or_none",
    "format_damage",
    "int8_facts",
    "named_in",
    "notebook_html",
    "page_data",
    "plan_facts",
    "plan_notebook",
    "render_curve",
    "render_groups",
    "render_layers",
    "render_page",
    "render_plan",
    "render_scores_html",
    "render_table",
    "render_text",
    "result_data",
    "result_facts",
    "result_notebook",
    "short_name",
    "slimmed_text",
    "study_data",
    "study_facts",
    "study_notebook",
    "warning_facts",
    "with_exported",
    "with_file",
    "with_times",
    "write_page",
]
