# SPDX-License-Identifier: Apache-2.0
"""Fits as a journal keeps them."""

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seams import Fit, fit_from_journal, fit_to_tensors
from slimrank.methods import Pair
from slimrank.records import Setting


class _Memory:
    """A journal that is not on disk."""

    def __init__(self) -> None:
        self._kept: dict[str, Mapping[str, Tensor]] = {}

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        return self._kept.get(name)

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self._kept[name] = tensors


def _task(setting: Setting | None) -> SimpleNamespace:
    return SimpleNamespace(spec=SimpleNamespace(name="fc"), setting=setting)


@pytest.mark.parametrize("kind", ["sequential", "independent", "weights"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_pair_comes_back(kind: str, has_bias: bool, rng: torch.Generator) -> None:
    setting = Setting(method="weight_svd", form="linear", rank=2)
    pair = Pair(
        form="linear", first=torch.randn(2, 4, generator=rng), second=torch.randn(3, 2, generator=rng)
    )
    bias = torch.randn(3, generator=rng) if has_bias else None
    journal = _Memory()
    journal.store("fc", fit_to_tensors(Fit(factors=pair, bias=bias, kind=kind)))
    found = fit_from_journal(journal, _task(setting))  # type: ignore[arg-type]
    assert found is not None
    assert isinstance(found.factors, Pair)
    assert (found.kind, found.factors.form) == (kind, "linear")
    assert torch.equal(found.factors.first, pair.first)
    assert torch.equal(found.factors.second, pair.second)
    assert (found.bias is None) == (bias is None)
    assert bias is None or torch.equal(found.bias, bias)


def test_a_layer_in_one_piece_comes_back(rng: torch.Generator) -> None:
    weight = torch.randn(3, 4, generator=rng)
    journal = _Memory()
    journal.store("fc", fit_to_tensors(Fit(factors=weight, bias=None, kind="independent")))
    found = fit_from_journal(journal, _task(None))  # type: ignore[arg-type]
    assert found is not None
    assert torch.equal(found.factors, weight)


def test_what_was_not_fitted_is_not_known() -> None:
    assert fit_from_journal(None, _task(None)) is None  # type: ignore[arg-type]
    assert fit_from_journal(_Memory(), _task(None)) is None  # type: ignore[arg-type]
