# SPDX-License-Identifier: Apache-2.0
"""Modules that are watched during a forward: who is told what, and that no hook stays."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from slimrank.forward import first_input, watch_modules


class _Scaled(nn.Module):
    """A layer whose factor is given by keyword, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = _Scale()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale(self.scale(x, by=2.0), by=3.0)
        return out


class _Scale(nn.Module):
    def forward(self, x: Tensor, *, by: float) -> Tensor:
        return x * by


class _Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"{tuple(x.shape)} is refused")


def _n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_call_is_entered_and_left_in_order_with_its_arguments() -> None:
    model = _Scaled()
    seen: list[tuple[object, ...]] = []

    def enter(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        seen.append(("enter", name, len(args), dict(kwargs)))

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> None:
        assert isinstance(output, Tensor)
        seen.append(("leave", name, len(args), dict(kwargs), output.tolist()))

    with watch_modules(model.named_modules(), enter=enter, leave=leave):
        model(torch.ones(1))
    assert seen == [
        ("enter", "", 1, {}),
        ("enter", "scale", 1, {"by": 2.0}),
        ("leave", "scale", 1, {"by": 2.0}, [2.0]),
        ("enter", "scale", 1, {"by": 3.0}),
        ("leave", "scale", 1, {"by": 3.0}, [6.0]),
        ("leave", "", 1, {}, [6.0]),
    ]
    assert _n_hooks(model) == 0


def test_what_leave_returns_is_the_output_unless_it_is_none() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    answers: dict[str, Tensor | None] = {"0": torch.full((1,), 5.0), "1": None}
    with watch_modules(model.named_children(), leave=lambda name, *_: answers[name]):
        assert model(torch.ones(1)).tolist() == [5.0]
    assert model(torch.ones(1)).tolist() == [1.0]


def test_only_the_given_modules_get_hooks_and_only_those_that_are_needed() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    with watch_modules([("0", model[0])], enter=lambda *_: None):
        assert [len(model[0]._forward_pre_hooks), len(model[0]._forward_hooks)] == [1, 0]
        assert _n_hooks(model) == 1
    with watch_modules([("1", model[1])], leave=lambda *_: None):
        assert [len(model[1]._forward_pre_hooks), len(model[1]._forward_hooks)] == [0, 1]
        assert _n_hooks(model) == 1


def test_hooks_run_after_those_that_are_there_already_and_leave_them() -> None:
    layer = nn.Identity()
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("the user's"))
    with watch_modules([("0", layer)], enter=lambda *_: seen.append("ours")):
        layer(torch.ones(1))
    assert seen == ["the user's", "ours"]
    assert len(layer._forward_pre_hooks) == 1


@pytest.mark.parametrize(("always_leave", "left"), [(False, []), (True, ["1:None", ":None"])])
def test_a_module_that_raises_is_left_only_on_request(always_leave: bool, left: list[str]) -> None:
    model = nn.Sequential(nn.Identity(), _Refusing())
    seen: list[str] = []

    def leave(name: str, _args: object, _kwargs: object, output: object) -> None:
        if output is None:
            seen.append(f"{name}:{output}")

    with (
        pytest.raises(ValueError, match=r"\(2,\) is refused"),
        watch_modules(model.named_modules(), leave=leave, always_leave=always_leave),
    ):
        model(torch.ones(2))
    assert seen == left
    assert _n_hooks(model) == 0


def test_no_hook_stays_where_a_module_cannot_be_found() -> None:
    model = nn.Sequential(nn.Identity())
    names = ("0", "7")
    with (
        pytest.raises(AttributeError, match="7"),
        watch_modules(((name, model.get_submodule(name)) for name in names), enter=lambda *_: None),
    ):
        pass
    assert _n_hooks(model) == 0


def test_an_error_in_enter_ends_the_forward() -> None:
    model = nn.Sequential(nn.Identity(), _Refusing())

    def enter(name: str, *_: object) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError, match="1"), watch_modules([("1", model[1])], enter=enter):
        model(torch.ones(2))
    assert _n_hooks(model) == 0


def test_the_first_input_is_by_position_or_else_by_keyword() -> None:
    assert first_input((1, 2), {"x": 3}) == 1
    assert first_input((), {"x": 3, "y": 4}) == 3
    assert first_input((), {}) is None
