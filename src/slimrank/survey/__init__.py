# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured behind a study."""

from slimrank.survey._anchors import independent_pair
from slimrank.survey._blocks import Known
from slimrank.survey._claim import Claim, claim
from slimrank.survey._fingerprint import fingerprint_of, read_as_stored
from slimrank.survey._folded import as_planned
from slimrank.survey._groups import GroupSurvey, fits_alone, group_chunks
from slimrank.survey._input_files import batches_from_files, batches_to_files
from slimrank.survey._layers import layer_chunks, target_of
from slimrank.survey._listeners import listeners_of
from slimrank.survey._measure import gather_gradients, measure
from slimrank.survey._memory_need import MemoryOption
from slimrank.survey._options import Options, check_options, methods_in_order
from slimrank.survey._previous import check_previous, check_previous_cost, previous_notes
from slimrank.survey._session import DataSource, Inputs, Run, Session, open_session, restored_copy
from slimrank.survey._skip import Skip, check_skip, globs_of
from slimrank.survey._study_files import (
    StudyRecord,
    check_fingerprint,
    check_saved_loss,
    fingerprint_in,
    has_previous_plan,
    read_study,
    saved_outputs,
    saved_source,
    write_study,
)

__all__ = [
    "Claim",
    "DataSource",
    "GroupSurvey",
    "Inputs",
    "Known",
    "MemoryOption",
    "Options",
    "Run",
    "Session",
    "Skip",
    "StudyRecord",
    "as_planned",
    "batches_from_files",
    "batches_to_files",
    "check_fingerprint",
    "check_options",
    "check_previous",
    "check_previous_cost",
    "check_saved_loss",
    "check_skip",
    "claim",
    "fingerprint_in",
    "fingerprint_of",
    "fits_alone",
    "gather_gradients",
    "globs_of",
    "group_chunks",
    "has_previous_plan",
    "independent_pair",
    "layer_chunks",
    "listeners_of",
    "measure",
    "methods_in_order",
    "open_session",
    "previous_notes",
    "read_as_stored",
    "read_study",
    "restored_copy",
    "saved_outputs",
    "saved_source",
    "target_of",
    "write_study",
]
