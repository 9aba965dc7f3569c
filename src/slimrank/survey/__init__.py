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
from slimrank.survey._previous import check_previous, check_previous_cost, previous_notes
from slimrank.survey._saved import check_saved_loss, saved_grams, saved_outputs, saved_source, write_study
from slimrank.survey._session import DataSource, Inputs, Run, Session, open_session, restored_copy
from slimrank.survey._skip import Skip, check_skip, globs_of

__all__ = [
    "Claim",
    "DataSource",
    "GroupSurvey",
    "Inputs",
    "Known",
    "MemoryOption",
    "Run",
    "Session",
    "Skip",
    "as_planned",
    "batches_from_files",
    "batches_to_files",
    "check_previous",
    "check_previous_cost",
    "check_saved_loss",
    "check_skip",
    "claim",
    "fingerprint_of",
    "fits_alone",
    "gather_gradients",
    "globs_of",
    "group_chunks",
    "independent_pair",
    "layer_chunks",
    "listeners_of",
    "measure",
    "open_session",
    "previous_notes",
    "read_as_stored",
    "restored_copy",
    "saved_grams",
    "saved_outputs",
    "saved_source",
    "target_of",
    "write_study",
]
