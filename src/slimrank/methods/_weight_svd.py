# SPDX-License-Identifier: Apache-2.0
"""Weight SVD: Linear -> two Linears, k x k -> k x k and 1x1 in either order.

Derivation: docs/weight_svd.md.
"""

from slimrank.methods._form_rule import FormRule


def _all(n_dims: int) -> tuple[bool, ...]:
    return (True,) * n_dims


def _none(n_dims: int) -> tuple[bool, ...]:
    return (False,) * n_dims


WEIGHT_SVD = (
    FormRule(form="linear", first_taps=_all, is_closed=True),
    FormRule(form="kxk_1x1", first_taps=_all, is_closed=True),
    FormRule(form="1x1_kxk", first_taps=_none, is_closed=False),
)
