# SPDX-License-Identifier: Apache-2.0
"""All methods by name."""

from slimrank.cost import FORMS
from slimrank.records import Method

METHODS: tuple[Method, ...] = (*FORMS, "channel_pruning")
