# SPDX-License-Identifier: Apache-2.0
"""The table of measured times."""

from slimrank.latencies._file import (
    ChoiceFields,
    choice_from,
    choice_to_json,
    conditions_from,
    conditions_to_json,
    read_latencies,
    write_latencies,
)
from slimrank.latencies._latencies import Latencies
from slimrank.latencies._parts import Parts, Place
from slimrank.latencies._record import Conditions, LatencyRecord, VariantTime
from slimrank.latencies._tie import differing_topics, tie_of

__all__ = [
    "ChoiceFields",
    "Conditions",
    "Latencies",
    "LatencyRecord",
    "Parts",
    "Place",
    "VariantTime",
    "choice_from",
    "choice_to_json",
    "conditions_from",
    "conditions_to_json",
    "differing_topics",
    "read_latencies",
    "tie_of",
    "write_latencies",
]
