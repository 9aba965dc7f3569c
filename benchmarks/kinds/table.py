# SPDX-License-Identifier: Apache-2.0
"""All kinds by name."""

from benchmarks.kinds import (
    classifying,
    detecting,
    labelling,
    mapping,
    measuring,
    raw_detecting,
    restoring,
    segmenting,
)
from benchmarks.kinds.kind import named

KINDS = named(
    (
        *restoring.KINDS,
        *classifying.KINDS,
        *labelling.KINDS,
        *segmenting.KINDS,
        *detecting.KINDS,
        *raw_detecting.KINDS,
        *measuring.KINDS,
        *mapping.KINDS,
    )
)
