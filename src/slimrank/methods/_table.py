# SPDX-License-Identifier: Apache-2.0
"""The method table: one row per method that puts a pair in place of a layer, and all methods by name."""

from collections.abc import Mapping
from types import MappingProxyType

from slimrank.methods._form_rule import FormRule
from slimrank.methods._spatial_svd import SPATIAL_SVD
from slimrank.methods._weight_svd import WEIGHT_SVD
from slimrank.records import Form, Method

TABLE: Mapping[Method, tuple[FormRule, ...]] = MappingProxyType(
    {"weight_svd": WEIGHT_SVD, "spatial_svd": SPATIAL_SVD}
)
METHODS: tuple[Method, ...] = (*TABLE, "channel_pruning")
RULES: Mapping[Form, FormRule] = MappingProxyType(
    {rule.form: rule for rules in TABLE.values() for rule in rules}
)
