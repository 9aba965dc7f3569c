# SPDX-License-Identifier: Apache-2.0
"""Spatial SVD: k_h x k_w -> k_h x 1 and 1 x k_w in either order. Derivation: docs/spatial_svd.md."""

from slimrank.methods._form_rule import FormRule


def _rows(_n_dims: int) -> tuple[bool, ...]:
    return (True, False)


def _columns(_n_dims: int) -> tuple[bool, ...]:
    return (False, True)


SPATIAL_SVD = (
    FormRule(form="v_h", first_taps=_rows, is_closed=False),
    FormRule(form="h_v", first_taps=_columns, is_closed=False),
)
