# SPDX-License-Identifier: Apache-2.0
import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimrank.capture import Epilogue, Source, find_epilogues, find_norms, find_sources
from slimrank.forward import Lockstep, Shortcut, as_batch
from slimrank.surgery import quiet_copy

INF = float("inf")


class Block(nn.Module):
    """A residual block; ``late`` computes its shortcut last, ``leak`` uses the sum before the ReLU too."""

    def __init__(self, *, late: bool = False, leak: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b, self.nb = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.short = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=inplace)
        self.late, self.leak = late, leak

    def forward(self, x: Tensor) -> Tensor:
        shortcut = None if self.late else self.short(x)
        y = self.nb(self.b(self.relu(self.na(self.a(x)))))
        total = y + (self.short(x) if shortcut is None else shortcut)
        out = self.relu(total)
        return out + total if self.leak else out


def epilogues_of(model: nn.Module, x: Tensor) -> dict[str, Epilogue]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return dict(find_epilogues(quiet_copy(model), as_batch(x), names))


IMAGE = torch.ones(1, 3, 5, 5)


@pytest.mark.parametrize("inplace", [False, True])
def test_norm_sum_and_relu_are_found(inplace: bool) -> None:
    # One ReLU module called twice: it is no source, and its calls count by tensor.
    found = epilogues_of(Block(inplace=inplace), IMAGE)
    assert found["a"] == Epilogue(norm="na", bounds=(0.0, INF))
    assert found["b"] == Epilogue(norm="nb", shortcut=Shortcut("short", "output"), bounds=(0.0, INF))
    assert "short" not in found


def test_the_branch_that_runs_last_makes_up_for_the_other() -> None:
    found = epilogues_of(Block(late=True), IMAGE)
    assert found["short"] == Epilogue(shortcut=Shortcut("nb", "output"), bounds=(0.0, INF))
    # What is added to b comes later than b: neither sum nor ReLU can be reckoned with.
    assert "b" not in found


def test_a_sum_that_is_used_again_is_not_clipped() -> None:
    assert epilogues_of(Block(leak=True), IMAGE)["b"].bounds is None


def test_an_output_that_is_used_twice_has_no_tail() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return functional.relu(y) + y.mean()

    assert epilogues_of(Twice(), torch.ones(2, 4)) == {}


def test_an_output_that_is_returned_as_well_has_no_tail() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return y, functional.relu(y)

    assert epilogues_of(Both(), torch.ones(2, 4)) == {}


def test_a_layer_that_is_called_twice_has_no_tail() -> None:
    shared = nn.Linear(4, 4)
    assert epilogues_of(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()), torch.ones(2, 4)) == {}


@pytest.mark.parametrize(
    ("clip", "bounds"),
    [
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.ReLU6(inplace=True), (0.0, 6.0)),
        (nn.Hardtanh(-2, 3), (-2.0, 3.0)),
        (nn.Hardtanh(), (-1.0, 1.0)),
    ],
)
def test_both_ends_of_a_clipping_are_read(clip: nn.Module, bounds: tuple[float, float]) -> None:
    assert epilogues_of(nn.Sequential(nn.Linear(4, 4), clip), torch.ones(2, 4))["0"].bounds == bounds


def test_clamp_with_one_end_is_read() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).clamp(min=0.5)).clamp(max=2.0)

    found = epilogues_of(Clamped(), torch.ones(2, 4))
    assert found["a"].bounds == (0.5, INF)
    assert found["b"].bounds == (-INF, 2.0)


def test_other_nonlinearities_are_no_clipping() -> None:
    assert epilogues_of(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.ones(2, 4)) == {}


@torch.no_grad()
def test_lockstep_hands_out_what_will_be_added() -> None:
    model = quiet_copy(Block())
    data = [as_batch(torch.randn(n, 3, 5, 5)) for n in (2, 1)]
    with Lockstep(model, data, ["b"], {"b": Shortcut("short", "output")}) as lockstep:
        lockstep.advance("b")
        added = lockstep.shortcut("b")
    for batch, tensor in zip(data, added, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, model.short(batch.args[0]))


def norms(model: nn.Module, x: Tensor) -> dict[str, str]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return dict(find_norms(quiet_copy(model), as_batch(x), names))


def test_norms_that_alone_read_a_layer_are_found() -> None:
    assert norms(Block(), IMAGE) == {"a": "na", "b": "nb"}
    deep = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert norms(deep, torch.ones(2, 4)) == {"0": "1", "3": "4"}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.LayerNorm(4),
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)),
    ],
    ids=["no statistics", "another norm", "not at once"],
)
def test_other_followers_take_up_no_mean(norm: nn.Module) -> None:
    assert norms(nn.Sequential(nn.Linear(4, 4), norm), torch.ones(2, 4)) == {}


class Read(nn.Module):
    """A layer and a norm, used in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.how = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.how == "beside":
            return self.norm(y) + y
        if self.how == "two layers":
            return self.norm(y) + self.norm(self.b(x))
        if self.how == "layer twice":
            return self.norm(y) + self.b(self.a(x + 1))
        if self.how == "in place":
            return self.norm(y.add_(1))
        if self.how == "a view":
            return self.norm(y.view(-1, 4))
        return self.norm(y)


@pytest.mark.parametrize("how", ["beside", "two layers", "layer twice", "in place", "a view"])
def test_a_mean_that_others_see_stays(how: str) -> None:
    assert norms(Read(how), torch.ones(2, 4)) == {}
    assert norms(Read("alone"), torch.ones(2, 4)) == {"a": "norm"}


def test_only_layers_that_were_asked_for_are_told() -> None:
    assert dict(find_norms(quiet_copy(Block()), as_batch(IMAGE), ["b"])) == {"b": "nb"}


def sources_of(forward: Callable[[nn.Module, Tensor], object]) -> dict[str, Source | str]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> object:
            return forward(self, x)

    return dict(find_sources(quiet_copy(Net()), as_batch(torch.ones(2, 4)), ["norm"], ["a", "b"]))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: net.norm(net.a(x)), Source(layer="a", n_dims=2)),
        (lambda net, x: net.norm(net.a(net.norm(net.a(x)))), Source(layer="a", n_dims=2)),
        (lambda net, x: failing(net.b, x) or net.norm(net.a(x)), Source(layer="a", n_dims=2)),
        (lambda net, x: net.a(x), "the forward does not call it"),
        (lambda net, x: net.norm.forward(net.a(x)), "the forward does not call it"),
        (
            lambda net, x: net.norm(input=net.a(x).relu()),
            "the input is not the output of one layer, unchanged",
        ),
        (lambda net, x: net.norm(net.a(x)) + net.norm(net.b(x)), "the inputs come from several layers"),
        (lambda net, x: net.norm(net.a(net.a(x))), "the layer before is not called once for each call"),
        (
            lambda net, x: (net.norm(y := net.a(x)), y),
            "the output of the layer before is also read elsewhere",
        ),
        (
            lambda net, x: net.norm(y := net.a(x)) + y[:1],
            "the output of the layer before is also read elsewhere",
        ),
        (lambda net, x: net.norm(net.a(x)) + net.a.forward(x), "weights are also read elsewhere"),
        (lambda net, x: net.norm(net.a(x)) * net.norm.running_var, "weights are also read elsewhere"),
    ],
)
def test_the_layer_that_alone_gives_a_module_its_input(
    forward: Callable[[nn.Module, Tensor], object], expected: Source | str
) -> None:
    assert sources_of(forward) == {"norm": expected}


def failing(module: nn.Module, x: Tensor) -> None:
    with contextlib.suppress(RuntimeError):
        module(x[:, :2])
