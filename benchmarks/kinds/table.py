# SPDX-License-Identifier: Apache-2.0
"""All kinds, by name."""

from benchmarks.kinds import (
    audio,
    choices,
    control,
    embeddings,
    forecasts,
    sequences,
    surrogates,
    tabular,
    text,
    words,
)
from benchmarks.kinds.kind import named

KINDS = named(
    (
        *forecasts.KINDS,
        *sequences.KINDS,
        *text.KINDS,
        *words.KINDS,
        *audio.KINDS,
        *embeddings.KINDS,
        *control.KINDS,
        *tabular.KINDS,
        *choices.KINDS,
        *surrogates.KINDS,
    )
)
