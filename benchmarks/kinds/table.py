# SPDX-License-Identifier: Apache-2.0
"""All kinds, by name."""

from benchmarks.kinds import (
    audio,
    choices,
    classifying,
    control,
    detecting,
    embeddings,
    forecasts,
    labelling,
    mapping,
    measuring,
    raw_detecting,
    restoring,
    segmenting,
    sequences,
    surrogates,
    tabular,
    text,
    words,
)
from benchmarks.kinds.kind import named

KINDS = named(
    (
        *classifying.KINDS,
        *labelling.KINDS,
        *segmenting.KINDS,
        *detecting.KINDS,
        *raw_detecting.KINDS,
        *measuring.KINDS,
        *mapping.KINDS,
        *restoring.KINDS,
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
