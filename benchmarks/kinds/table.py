# SPDX-License-Identifier: Apache-2.0
"""All kinds, by name."""

from benchmarks.kinds import audio, forecasts, sequences, text, words
from benchmarks.kinds.kind import named

KINDS = named((*forecasts.KINDS, *sequences.KINDS, *text.KINDS, *words.KINDS, *audio.KINDS))
