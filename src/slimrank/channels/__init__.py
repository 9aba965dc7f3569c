# SPDX-License-Identifier: Apache-2.0
"""Which channels can only go together."""

from slimrank.channels._read import read_groups
from slimrank.channels._without import freeze, without_layers
from slimrank.channels.trial._check import slim_failures
from slimrank.channels.trial._stale_sizes import StaleSize, stale_sizes
from slimrank.channels.trial._trial import try_groups

__all__ = [
    "StaleSize",
    "freeze",
    "read_groups",
    "slim_failures",
    "stale_sizes",
    "try_groups",
    "without_layers",
]
