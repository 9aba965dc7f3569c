# SPDX-License-Identifier: Apache-2.0
"""A method of three modules and two ranks, known to the table alone, goes the way that pairs go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seams import Fit, add_method, fit_from_journal, fit_to_tensors
from slimrank import UnknownNameError
from slimrank.cost import FORMS
from slimrank.methods import (
    TABLE,
    Factors,
    LayerFunctions,
    MethodRow,
    Target,
    build_modules,
    build_replacement,
    empty_replacement,
    factors_from_tensors,
    factors_on,
    factors_to_tensors,
    fill_container,
    fit_factors,
    has_bias_in,
    is_replaced_in,
    is_replacement,
    layer_curves,
    open_container,
    weights_target,
)
from slimrank.records import Form, LayerSpec, Setting
from slimrank.surgery import dense_weight
from specs import linear


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoRanks(Setting):
    """A setting with a rank on either side of the module in the middle."""

    rank_out: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Three:
    """Three factors of a linear layer: (R, D), (P, R) and (O, P)."""

    setting: Setting
    tensors: tuple[Tensor, ...]

    def weight(self, spec: LayerSpec) -> Tensor:
        first, middle, last = self.tensors
        assert last.shape[0] == spec.n_outputs
        return last @ middle @ first


def _fit(
    spec: LayerSpec, setting: Setting, target: Target, *, alternations: int, start: Factors | None
) -> Three:
    assert isinstance(setting, TwoRanks)
    left, values, right = torch.linalg.svd(target.dense, full_matrices=False)
    middle = torch.diag(values)[: setting.rank_out, : setting.rank]
    return Three(setting=setting, tensors=(right[: setting.rank], middle, left[:, : setting.rank_out]))


def _errors(spec: LayerSpec, form: Form, target: Target, *, limit: int | None = None) -> Tensor:
    assert form in FORMS["weight_svd"]
    assert spec.n_outputs == len(target.dense)
    return _TOY_ERRORS[: None if limit is None else limit + 1]


def _modules(spec: LayerSpec, setting: Setting, *, has_bias: bool) -> tuple[nn.Module, ...]:
    assert isinstance(setting, TwoRanks)
    n_out, n_in = spec.weight_shape
    return (
        nn.Linear(n_in, setting.rank, bias=False, device="meta"),
        nn.Linear(setting.rank, setting.rank_out, bias=False, device="meta"),
        nn.Linear(setting.rank_out, n_out, bias=has_bias, device="meta"),
    )


def _three(setting: Setting, tensors: Sequence[Tensor]) -> Three:
    return Three(setting=setting, tensors=tuple(tensors))


_TOY = MethodRow(
    name="toy",  # type: ignore[arg-type]
    forms=("u_s_v",),  # type: ignore[arg-type]
    functions=LayerFunctions(
        factor_names=("v", "s", "u"), errors=_errors, fit=_fit, modules=_modules, factors_of=_three
    ),
)
# At every rank up to that of a 7 x 5 layer.
_TOY_ERRORS = torch.tensor([9.0, 5.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
_SPEC = linear("fc", 7, 5)
_SETTING = TwoRanks(method="toy", form="u_s_v", rank=3, rank_out=4)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _toy_row(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, _TOY)


@pytest.fixture
def layer(rng: torch.Generator) -> nn.Linear:
    layer = nn.Linear(5, 7).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return layer


def _fitted(layer: nn.Module, setting: Setting = _SETTING) -> Three:
    factors = fit_factors(_SPEC, setting, weights_target(dense_weight(layer)), alternations=0)
    assert isinstance(factors, Three)
    return factors


def test_the_row_replaces_a_layer() -> None:
    assert _TOY.replaces == "layer"
    assert {name: row.replaces for name, row in TABLE.items()} == {
        "weight_svd": "layer",
        "spatial_svd": "layer",
        "tucker2": "layer",
        "channel_pruning": "group",
    }


def test_curves_hold_the_errors_of_the_row(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, replace(TABLE["weight_svd"], functions=_TOY.functions))
    (curve,) = layer_curves(_SPEC, ["weight_svd"], weights_target(dense_weight(layer)), has_bias=True)
    assert curve.ranks.tolist() == [1, 2]
    assert curve.error.tolist() == [5.0, 3.0]


def test_full_ranks_give_the_layer_back(layer: nn.Linear, rng: torch.Generator) -> None:
    full = replace(_SETTING, rank=5, rank_out=5)
    new = build_replacement(_SPEC, layer, _fitted(layer, full), layer.bias.detach())
    x = torch.randn((4, 5), generator=rng)
    # Three products in float32 instead of one.
    torch.testing.assert_close(new(x), layer(x), rtol=0, atol=1e-5)
    assert [tuple(module.weight.shape) for module in new] == [(5, 5), (5, 5), (7, 5)]


def test_only_the_last_module_has_the_bias(layer: nn.Linear) -> None:
    factors = _fitted(layer)
    modules = build_modules(_SPEC, layer, factors, torch.arange(7.0))
    assert [module.bias is None for module in modules] == [True, True, False]
    assert torch.equal(modules[-1].bias.detach(), torch.arange(7.0))
    assert all(module.bias is None for module in build_modules(_SPEC, layer, factors, None))


def test_the_container_around_the_layer_takes_all_modules(layer: nn.Linear, rng: torch.Generator) -> None:
    factors = _fitted(layer)
    x = torch.randn((4, 5), generator=rng)
    container = open_container(layer)
    assert torch.equal(container(x), layer(x))
    fill_container(container, _SPEC, layer, factors, None)
    assert len(container) == 3
    assert not container.training
    torch.testing.assert_close(container(x), x @ factors.weight(_SPEC).float().T)


def test_the_journal_gives_the_factors_back(layer: nn.Linear) -> None:
    factors = _fitted(layer)
    tensors = factors_to_tensors(factors)
    assert list(tensors) == ["v", "s", "u"]
    again = factors_from_tensors(_SETTING, tensors)
    assert again.setting == _SETTING
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, factors.tensors, strict=True))
    fit = Fit(factors=factors, bias=torch.ones(7), kind="sequential")
    stored = fit_to_tensors(fit)
    assert list(stored) == ["kind", "v", "s", "u", "bias"]
    journal = SimpleNamespace(load=lambda _name: stored)
    read = fit_from_journal(journal, SimpleNamespace(spec=_SPEC, setting=_SETTING))  # type: ignore[arg-type]
    assert read is not None
    assert read.kind == "sequential"
    assert torch.equal(read.weight(_SPEC), fit.weight(_SPEC))
    assert torch.equal(read.bias, torch.ones(7))


def test_names_in_a_state_dict_tell_what_is_there(layer: nn.Linear) -> None:
    model = nn.Sequential()
    model.add_module("fc", empty_replacement(_SPEC, _SETTING, has_bias=True))
    names = list(model.state_dict())
    assert names == ["fc.0.weight", "fc.1.weight", "fc.2.weight", "fc.2.bias"]
    assert is_replaced_in(names, "fc")
    assert not is_replaced_in(nn.ModuleDict({"fc": layer}).state_dict(), "fc")
    assert has_bias_in(names, "fc", _SETTING) is True
    assert has_bias_in(names[:-1], "fc", _SETTING) is False
    # A later step replaced the last factor itself.
    assert has_bias_in([*names[:2], "fc.2.0.weight", "fc.2.1.bias"], "fc", _SETTING) is None


def test_a_model_is_checked_for_every_size_between_factors(layer: nn.Linear) -> None:
    modules = dict(nn.ModuleDict({"fc": empty_replacement(_SPEC, _SETTING, has_bias=True)}).named_modules())
    assert is_replacement(modules, _SPEC, _SETTING)
    assert not is_replacement(modules, _SPEC, replace(_SETTING, rank=2))
    other = replace(_SETTING, rank_out=2)
    assert not is_replacement(modules, _SPEC, other)
    assert is_replacement(modules, _SPEC, other, replaced={"fc.1"})
    assert not is_replacement({"fc": layer}, _SPEC, _SETTING)


def test_factors_move_as_a_whole(layer: nn.Linear) -> None:
    moved = factors_on(_fitted(layer), torch.device("meta"))
    assert [tensor.device.type for tensor in moved.tensors] == ["meta"] * 3
    assert moved.setting == _SETTING


def test_a_method_without_functions_is_refused() -> None:
    setting = Setting(method="channel_pruning", form="linear", rank=2)
    with pytest.raises(UnknownNameError, match="method 'channel_pruning' replaces no single layer"):
        empty_replacement(_SPEC, setting, has_bias=False)


def test_a_container_that_was_exchanged_is_refused(layer: nn.Linear) -> None:
    with pytest.raises(TypeError, match="fc is a Linear, not the container"):
        fill_container(layer, _SPEC, layer, _fitted(layer), None)
