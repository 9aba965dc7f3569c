# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured behind a study."""

from slimrank.survey._anchors import independent_pair
from slimrank.survey._curve_files import (
    read_blocks,
    read_curves,
    read_group_curves,
    write_blocks,
    write_curves,
    write_groups,
)
from slimrank.survey._fingerprint import content_of, fingerprint_of
from slimrank.survey._groups import GroupSurvey, fits_alone, group_chunks
from slimrank.survey._input_files import batch_from_files, batches_to_files
from slimrank.survey._layers import layer_chunks, target_of
from slimrank.survey._measure import gather_gradients, measure
from slimrank.survey._options import (
    Options,
    check_options,
    globs_of,
    methods_in_order,
    options_from_json,
    options_to_json,
)
from slimrank.survey._session import DataSource, Inputs, Run, Session, open_session, restored_copy
from slimrank.survey._study_files import (
    CURVE_FILES,
    FORMAT,
    PREVIOUS_FILE,
    RUN_FILE,
    STUDY_FILE,
    UNTOUCHED_FILE,
    all_batches,
    check_format,
    claim,
    fingerprint_in,
    list_of,
    mover,
    object_of,
    outputs_to_json,
    write_fingerprint,
)

__all__ = [
    "CURVE_FILES",
    "FORMAT",
    "PREVIOUS_FILE",
    "RUN_FILE",
    "STUDY_FILE",
    "UNTOUCHED_FILE",
    "DataSource",
    "GroupSurvey",
    "Inputs",
    "Options",
    "Run",
    "Session",
    "all_batches",
    "batch_from_files",
    "batches_to_files",
    "check_format",
    "check_options",
    "claim",
    "content_of",
    "fingerprint_in",
    "fingerprint_of",
    "fits_alone",
    "gather_gradients",
    "globs_of",
    "group_chunks",
    "independent_pair",
    "layer_chunks",
    "list_of",
    "measure",
    "methods_in_order",
    "mover",
    "object_of",
    "open_session",
    "options_from_json",
    "options_to_json",
    "outputs_to_json",
    "read_blocks",
    "read_curves",
    "read_group_curves",
    "restored_copy",
    "target_of",
    "write_blocks",
    "write_curves",
    "write_fingerprint",
    "write_groups",
]
