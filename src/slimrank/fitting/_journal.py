# SPDX-License-Identifier: Apache-2.0
"""Fitted layers on disk, so that a killed run goes on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from slimrank.files import Store
from slimrank.fitting._fit import Fit
from slimrank.fitting._layer_tasks import LayerTask, layer_tasks
from slimrank.methods import factors_from_tensors, factors_to_tensors
from slimrank.plan import Plan
from slimrank.tensors import read_tensors, write_tensors


class FitJournal(Protocol):
    """Where fitted layers are kept, so that a killed run goes on."""

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of a layer that was fitted before; None where it was not."""
        ...

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors of a fitted layer."""
        ...


# A journal holds the index of the kind: the order is part of the format.
_KINDS = ("sequential", "independent", "weights")


def fit_to_tensors(fit: Fit) -> Mapping[str, Tensor]:
    """A fit as a journal keeps it; ``fit_from_journal`` reads it."""
    tensors = {"kind": torch.tensor(_KINDS.index(fit.kind))}
    if fit.is_unpaired:
        tensors["is_unpaired"] = torch.tensor(1)
    if isinstance(fit.factors, Tensor):
        tensors["weight"] = fit.factors
    else:
        tensors |= factors_to_tensors(fit.factors)
    return tensors if fit.bias is None else tensors | {"bias": fit.bias}


def fit_from_journal(journal: FitJournal | None, task: LayerTask) -> Fit | None:
    """The fit of an earlier run.

    Args:
        journal: of that run; None for none.
        task: of the layer.

    Returns:
        The fit; None where the layer was not fitted.
    """
    tensors = None if journal is None else journal.load(task.spec.name)
    if tensors is None:
        return None
    setting = task.setting
    kind = _KINDS[int(tensors["kind"])]
    factors = tensors["weight"] if setting is None else factors_from_tensors(setting, tensors)
    return Fit(factors=factors, bias=tensors.get("bias"), kind=kind, is_unpaired="is_unpaired" in tensors)


class LayerFiles:
    """Fitted layers of one plan in a run directory."""

    def __init__(self, run_dir: Path, plan: Plan, sequential: bool, fingerprint: Mapping[str, str]) -> None:
        text = (
            # In the order of the plan, as journals have been named from the first version on.
            repr(list(plan.settings.items()))
            + repr(plan.steps[-1].key[1:] if plan.steps else ([], ()))
            + str(sequential)
            + repr(sorted(fingerprint.items()))
        )
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._store = Store(run_dir)
        self._names = {
            name: f"apply/{key}/{index:04d}.safetensors" for index, name in enumerate(layer_tasks(plan))
        }

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of a layer that was fitted before."""
        file = self._names[name]
        return read_tensors(self._store.root / file) if self._store.has(file) else None

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps a fitted layer."""
        write_tensors(self._store.path_of(self._names[name]), tensors)
