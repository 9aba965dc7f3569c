# SPDX-License-Identifier: Apache-2.0
"""What a table belongs to: a network by its shapes. Weights may change, times do not."""

from collections.abc import Mapping
from hashlib import sha256

from slimrank.plan import Structure

# What an error calls each entry.
_WORDS = {"structure": "layers", "inputs": "sizes of the inputs"}


def tie_of(structure: Structure) -> dict[str, str]:
    """Digests of layers and of the sizes that they work on.

    Args:
        structure: of the network.

    Returns:
        By topic.
    """
    calls = [(name, structure.layers[name].calls) for name in sorted(structure.layers)]
    return {
        "structure": structure.sha256,
        "inputs": sha256(repr(calls).encode()).hexdigest(),
    }


def differing_topics(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """In words, in what two networks differ."""
    return [_WORDS.get(key, key) for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
