# SPDX-License-Identifier: Apache-2.0
"""All kinds by name."""

from benchmarks.kinds import classifying, mapping
from benchmarks.kinds.kind import named

KINDS = named((*classifying.KINDS, *mapping.KINDS))
