# SPDX-License-Identifier: Apache-2.0
import contextlib
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from slimrank.forward import Lockstep, OneByOne, Replay, as_batch, can_interleave


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def batches() -> list[object]:
    generator = torch.Generator().manual_seed(0)
    return [as_batch(torch.randn(n, 4, generator=generator)) for n in (3, 1, 2)]


@torch.no_grad()
def test_pauses_at_each_layer_and_takes_up_changes() -> None:
    model, data = net(), batches()
    with Lockstep(model, data, ["0", "2", "4"]) as lockstep:
        for batch, x in zip(data, lockstep.advance("0"), strict=True):
            assert torch.equal(x, batch.args[0])
        model[0].weight.zero_()
        model[0].bias.fill_(2.0)
        assert all(torch.all(x == 2) for x in lockstep.advance("2"))
        last = lockstep.advance("4")
        assert [x.shape for x in last] == [(3, 6), (1, 6), (2, 6)]


@pytest.mark.parametrize("kind", [Lockstep, OneByOne])
@torch.no_grad()
def test_outputs_are_kept_where_that_is_asked_for(kind: type[Lockstep | OneByOne]) -> None:
    model, data = net(), batches()
    with kind(model, data, ["0", "2"], keep_outputs=True) as forwards:
        for name in ("0", "2"):
            inputs = forwards.advance(name)
            outputs = forwards.outputs()
            assert all(torch.equal(y, model[int(name)](x)) for x, y in zip(inputs, outputs, strict=True))
    with kind(model, data, ["0", "2"]) as forwards:
        forwards.advance("0")
        assert forwards.outputs() == [None] * len(data)


@pytest.mark.parametrize("kind", [Lockstep, OneByOne])
@torch.no_grad()
def test_a_batch_is_run_to_the_stop_where_it_ends(kind: type[Lockstep | OneByOne]) -> None:
    model, data = net(), batches()
    ran: list[int] = []
    model[2].register_forward_hook(lambda _module, _args, output: ran.append(len(output)))
    with kind(model, data, ["0", "2", "4"], ends=["4", "0", "2"], keep_outputs=True) as forwards:
        sizes = {name: [len(x) for x in forwards.advance(name)] for name in ("0", "2", "4")}
        assert [y.shape for y in forwards.outputs()] == [(3, 3)]
    assert sizes == {"0": [3, 1, 2], "2": [3, 2], "4": [3]}
    assert 1 not in ran


def test_a_batch_that_ends_is_freed() -> None:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            kept = x + 1
            made.append(weakref.ref(kept))
            result: Tensor = self.b(self.a(x)) + kept
            return result

    made: list[weakref.ref[Tensor]] = []
    before = threading.active_count()
    with Lockstep(Big().eval(), batches(), ["a", "b"], ends=["b", "a", "a"]) as lockstep:
        lockstep.advance("a")
        assert [ref() is None for ref in made] == [False] * 3
        lockstep.advance("b")
        assert [ref() is None for ref in made] == [False, True, True]
        assert threading.active_count() == before + 1


class TidiesUp(nn.Module):
    """Keeps something on itself during a forward, and sets it back or takes it away at the end."""

    def __init__(self, rest: float | None) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.rest = self.scale = rest

    def forward(self, x: Tensor) -> Tensor:
        self.scale = 2.0
        try:
            y = self.b(self.a(x))
            result: Tensor = self.c(y * self.scale)
            return result
        finally:
            self.scale = self.rest


@pytest.mark.parametrize("rest", [None, 1.0])
def test_a_model_that_tidies_up_keeps_others_from_being_given_up(rest: float | None) -> None:
    model, data = TidiesUp(rest).eval(), batches()
    assert can_interleave(model, data, ["a", "b", "c"])
    assert not can_interleave(model, data, ["a", "b", "c"], gives_up=True)
    assert can_interleave(net(), data, ["0", "2", "4"], gives_up=True)


@torch.no_grad()
def test_threads_of_the_model_are_none_of_the_forwards() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            # Its thread may get the number of a forward that has ended.
            with ThreadPoolExecutor(1) as pool:
                y = pool.submit(self.b, y).result()
            result: Tensor = self.c(y)
            return result

    with Lockstep(Pooled().eval(), batches(), ["a", "b", "c"], ends=["a", "c", "c"]) as lockstep:
        lockstep.advance("a")
        assert [x.shape for x in lockstep.advance("c")] == [(1, 4), (2, 4)]


@torch.no_grad()
def test_layers_may_be_left_out() -> None:
    with Lockstep(net(), batches(), ["0", "2", "4"]) as lockstep:
        assert all(x is not None for x in lockstep.advance("4"))


def test_no_thread_and_no_hook_is_left() -> None:
    model = net()
    before = threading.active_count()
    with Lockstep(model, batches(), ["0", "4"]) as lockstep:
        lockstep.advance("0")
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    with contextlib.suppress(KeyboardInterrupt), Lockstep(model, batches(), ["0"]) as lockstep:
        lockstep.advance("0")
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_error_of_the_model_comes_out() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if len(x) == 1:
                raise LookupError("no such thing")
            return self.b(x)

    with Lockstep(Failing(), batches(), ["a", "b"]) as lockstep:
        lockstep.advance("a")
        with pytest.raises(LookupError, match="no such thing"):
            lockstep.advance("b")


def test_a_forward_that_skips_a_layer() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) if len(x) > 1 else x)

    with Lockstep(Sometimes(), batches(), ["a", "b"]) as lockstep:
        assert [x is None for x in lockstep.advance("a")] == [False, True, False]
        assert [x is None for x in lockstep.advance("b")] == [False, False, False]


def test_keyword_calls_hand_out_their_input() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(input=x)

    with Lockstep(Keyword(), batches(), ["a"]) as lockstep:
        assert [x.shape for x in lockstep.advance("a")] == [(3, 4), (1, 4), (2, 4)]


@torch.no_grad()
@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_replay_equals_whole_forwards(max_bytes: int) -> None:
    model, data = net(), batches()
    replay = Replay(model, data, max_bytes=max_bytes)
    references = [{"": model(*batch.args)} for batch in data]
    for name in ("0", "2", "4"):
        replay.start_at(name, references, None)
        layer = model.get_submodule(name)
        kept = layer.bias.clone()
        layer.bias.add_(1.0)
        for got, batch in zip(replay.stream(), data, strict=True):
            assert torch.equal(got, model(*batch.args))
        layer.bias.copy_(kept)
    assert not any("forward" in vars(m) for m in model.modules())


@torch.no_grad()
def test_replay_runs_what_lies_behind_only() -> None:
    model, data = net(), batches()
    replay = Replay(model, data, max_bytes=1 << 20)
    replay.start_at("4", [{"": model(*batch.args)} for batch in data], None)
    ran: list[int] = []
    original = nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ran.append(len(weight))
        return original(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", counted)
        list(replay.stream())
    assert ran == [3, 3, 3]


@pytest.mark.parametrize("started", [0, 1, 2])
def test_an_interrupt_while_forwards_start_leaves_nothing(
    started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, start, calls = net(), threading.Thread.start, []
    before = threading.active_count()

    def interrupted(thread: threading.Thread) -> None:
        if len(calls) == started:
            raise KeyboardInterrupt
        calls.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Lockstep(model, batches(), ["0"]):
        pytest.fail("the forwards started")
    assert len(calls) == started
    assert threading.active_count() == before
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_interrupt_before_the_original_goes_on_is_what_the_caller_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with Lockstep(net(), batches(), ["0", "2"]) as lockstep:
            lockstep.advance("0")
            monkeypatch.setattr(threading.Thread, "start", interrupted)
            lockstep.start("2")

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert threading.active_count() == before
