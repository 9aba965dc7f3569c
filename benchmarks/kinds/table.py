# SPDX-License-Identifier: Apache-2.0
"""All kinds by name."""

from benchmarks.kinds import classifying, detecting, mapping, restoring
from benchmarks.kinds.kind import named

KINDS = named((*restoring.KINDS, *classifying.KINDS, *detecting.KINDS, *mapping.KINDS))
