# SPDX-License-Identifier: Apache-2.0
"""Fitted layers on disk, so that a killed run goes on."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from slimrank.fitting._fit import Fit
from slimrank.methods import Pair
from slimrank.records import Setting


class Journal(Protocol):
    """Where fitted layers are kept, so that a killed run goes on."""

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of a layer that was fitted before; None where it was not."""
        ...

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors of a fitted layer."""
        ...


_KINDS = ("sequential", "independent", "weights")


def to_tensors(fit: Fit) -> Mapping[str, Tensor]:
    tensors = {"kind": torch.tensor(_KINDS.index(fit.kind))}
    if isinstance(fit.factors, Tensor):
        tensors["weight"] = fit.factors
    else:
        tensors |= {"first": fit.factors.first, "second": fit.factors.second}
    return tensors if fit.bias is None else tensors | {"bias": fit.bias}


def from_tensors(tensors: Mapping[str, Tensor], setting: Setting | None) -> Fit:
    kind = _KINDS[int(tensors["kind"])]
    if setting is None:
        return Fit(factors=tensors["weight"], bias=tensors.get("bias"), kind=kind)
    pair = Pair(form=setting.form, first=tensors["first"], second=tensors["second"])
    return Fit(factors=pair, bias=tensors.get("bias"), kind=kind)
