# SPDX-License-Identifier: Apache-2.0
"""Pages: values to data, and data to one self-contained HTML document."""

from slimrank.report.page._data import MadeFrom, result_data, study_data
from slimrank.report.page._frame import document
from slimrank.report.page._render import check_page_path, page_data, render_page, with_exported, write_page
from slimrank.report.page._times import with_times

__all__ = [
    "MadeFrom",
    "check_page_path",
    "document",
    "page_data",
    "render_page",
    "result_data",
    "study_data",
    "with_exported",
    "with_times",
    "write_page",
]
