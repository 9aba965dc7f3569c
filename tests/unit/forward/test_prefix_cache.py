# SPDX-License-Identifier: Apache-2.0
import copy
import inspect
import io
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from seams import handing_out, recording
from slimrank.forward import PrefixCache
from slimrank.surgery import replace_module

LAYERS = ("stem", "blocks.0.a", "blocks.1.b", "head")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.b(nn.functional.relu(self.a(x), inplace=True)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.head(self.blocks(self.act(self.stem(x))) * scale)


def quiet(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model.eval().requires_grad_(requires_grad=False)


def batches(n: int = 3, width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, width, generator=generator) for _ in range(n)]


@contextmanager
def swapped(model: nn.Module, name: str, seed: int) -> Iterator[None]:
    """Another layer in the place of one, of the same shape."""
    layer = model.get_submodule(name)
    generator = torch.Generator().manual_seed(seed)
    new = nn.Sequential(copy.deepcopy(layer))
    new[0].weight.data = torch.randn(layer.weight.shape, generator=generator)
    replace_module(model, name, new.eval())
    try:
        yield
    finally:
        replace_module(model, name, layer)


def called(model: nn.Module) -> list[str]:
    """Names of the Linears that really run, from now on."""
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def forward(x: Tensor, name: str = name, module: nn.Linear = module) -> Tensor:
                names.append(name)
                return nn.functional.linear(x, module.weight, module.bias)

            module.forward = forward  # type: ignore[method-assign]
    return names


Score = Callable[[nn.Module], list[Tensor]]


def both(model: nn.Module, score: Score, cache: PrefixCache, layers: tuple[str, ...] = LAYERS) -> None:
    """Three evaluations of every layer give the same with and without the cache, bit for bit."""
    for layer in layers:
        for seed in range(3):
            with swapped(model, layer, seed):
                expected = score(model)
                with cache.evaluation(layer):
                    got = score(model)
            for one, other in zip(expected, got, strict=True):
                assert torch.equal(one, other)
            assert "forward" not in vars(model)


@torch.no_grad()
@pytest.mark.parametrize("max_bytes", [0, 500, 1 << 20])
def test_scores_are_the_same_with_and_without(max_bytes: int) -> None:
    model = quiet(Net())
    both(model, lambda m: [m(x) for x in batches()], PrefixCache(model, max_bytes=max_bytes))


@torch.no_grad()
def test_only_what_follows_runs_and_memory_is_bounded() -> None:
    model, data = quiet(Net()), batches()
    names = called(model)
    cache = PrefixCache(model, max_bytes=1 << 20)
    runs: dict[tuple[str, int], int] = {}
    for layer in LAYERS:
        for seed in range(3):
            with swapped(model, layer, seed), cache.evaluation(layer):
                names.clear()
                # In another order every time: inputs are known by their content.
                for x in data[seed:] + data[:seed]:
                    model(x.clone())
                runs[layer, seed] = len(names)
    # 8 Linears a forward; the first forward of a phase runs a second time, to compare.
    assert [runs[layer, 2] for layer in LAYERS] == [3 * n for n in (8, 7, 4, 1)]
    assert [runs[layer, 1] for layer in LAYERS] == [3 * n + 8 * (n < 8) for n in (8, 7, 4, 1)]
    assert runs["head", 0] == 3 * 4 + 8
    # Of all that lies before the head only the sum that reaches it is alive.
    assert sum(record.n_bytes for record in cache._records.values()) < 3 * 2 * (4 * 8 * 4)


@torch.no_grad()
@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_cache_keeps_as_many_batches_as_fit(room: int) -> None:
    model = quiet(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)))
    size = 4 * 8 * 4 + 4
    cache = PrefixCache(model, max_bytes=room * size + 8 if room else 1)
    both(model, lambda m: [m(x) for x in batches()], cache, layers=("2",))
    assert len(cache._records) == room


@torch.no_grad()
def test_layers_may_come_in_any_order() -> None:
    model = quiet(Net())
    order = ("head", "blocks.0.a", "blocks.2.a", "stem", "blocks.1.b", "head")
    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, lambda m: [m(x) for x in batches()], cache, order)
    assert not cache._is_off


@torch.no_grad()
def test_functions_call_the_model_however_they_like() -> None:
    model = quiet(Net())

    def score(model: nn.Module) -> list[Tensor]:
        x, y, z = batches()
        out = [model(x), model.blocks(model.act(model.stem(y))), model.forward(z, scale=0.5), model(z)]
        twice = [model(x), model(x, scale=2.0), model(x[::2]), model(x.double().float())]
        with torch.inference_mode():
            out.append(model(y).clone())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out.append(model(y))
        out.append(copy.deepcopy(model)(z))
        return [*out, *twice]

    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, score, cache)
    assert not cache._is_off


def test_gradients_and_training_go_past_the_cache() -> None:
    model, x = quiet(Net()), batches()[0].requires_grad_()
    cache = PrefixCache(model, max_bytes=1 << 20)
    for seed in range(2):
        with swapped(model, "head", seed), cache.evaluation("head"):
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
            assert gradient.any()
            model.blocks[1].drop.train()
            with torch.no_grad():
                assert not torch.equal(model(x), model(x))
            model.eval()
    assert not cache._records
    assert not cache._is_off
    with swapped(model, "head", 3), cache.evaluation("head"):
        # With nothing that asks for a gradient, grad mode does not matter.
        model(x.detach())
    assert not cache._records


def test_records_with_grad_mode_on_and_nothing_that_asks() -> None:
    model = quiet(Net())
    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, lambda m: [m(x) for x in batches()], cache, layers=("head",))
    assert len(cache._records) == 3


class Stateful(nn.Module):
    """What it gives depends on how often its first part was really called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Counting()
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden) + self.first.calls


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class Noisy(nn.Module):
    """Draws in eval mode, before the layer and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.noise = Noise()
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.noise(self.first(x))
        return self.last(hidden) + torch.rand(4)


class Drawing(nn.Module):
    """Draws before the layer only: skipping that moves all random numbers that come later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), Noise())
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape)


class Aliased(nn.Module):
    """A later module works in place on what an earlier one gave, and both are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        other = self.act(hidden)
        return self.last(hidden + other)


class Objects(nn.Module):
    """What goes in and out between modules is no tensor, and is changed on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Remembering()
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        memory = Memory()
        hidden = self.first(x, memory)
        return self.last(hidden + memory.kept)


class Memory:
    kept: Tensor

    def __repr__(self) -> str:
        return "memory"


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        memory.kept = self.linear(x)
        return memory.kept.relu()


class Answering(nn.Module):
    """The output is an object."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Memory:
        answer = Memory()
        answer.kept = self.last(self.first(x))
        return answer


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "is_off"), [(Noisy, True), (Drawing, True), (Aliased, True), (Objects, False)]
)
def test_what_cannot_be_handed_out_is_run(kind: type[nn.Module], is_off: bool) -> None:
    model = quiet(kind())

    def score(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(0)
        return [model(x) for x in batches()] + [torch.rand(2)]

    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, score, cache, layers=("last",))
    assert cache._is_off == is_off
    assert not cache._records


@torch.no_grad()
def test_a_model_that_keeps_state_is_noticed() -> None:
    model = quiet(Stateful())
    cache = PrefixCache(model, max_bytes=1 << 20)
    with swapped(model, "last", 0), cache.evaluation("last"):
        model(batches()[0])
    assert cache._is_off


@torch.no_grad()
def test_outputs_that_are_objects_turn_it_off() -> None:
    model = quiet(Answering())
    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, lambda m: [m(x).kept for x in batches()], cache, layers=("last",))
    assert cache._is_off


@torch.no_grad()
def test_equal_inputs_with_other_values_turn_it_off() -> None:
    model = quiet(nn.Sequential(Scaled(), nn.Linear(8, 4)))

    def score(model: nn.Module) -> list[Tensor]:
        out = []
        for scale in (1.0, 2.0):
            model[0].scale = scale
            out += [model(x) for x in batches()]
        return out

    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, score, cache, layers=("1",))
    assert cache._is_off


class Scaled(nn.Module):
    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class Twice(nn.Module):
    """A module before the layer and after it, within another one as well; and a path of its own per input."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.wrap = nn.Sequential(self.shared, nn.ReLU())
        self.first, self.layer, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wrap(self.shared(self.first(x)))
        if bool(x.sum() > 0):
            hidden = self.layer(hidden) + hidden
        return self.last(self.shared(hidden))


@torch.no_grad()
def test_modules_that_are_called_again_and_paths_that_differ() -> None:
    model = quiet(Twice())
    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, lambda m: [m(x) for x in batches(6)], cache, layers=("first", "layer", "last"))
    assert not cache._is_off


@torch.no_grad()
def test_an_error_in_a_forward_leaves_nothing_behind() -> None:
    model = quiet(Net())
    cache = PrefixCache(model, max_bytes=1 << 20)
    for error in (LookupError, KeyboardInterrupt):
        handle = model.blocks[2].register_forward_pre_hook(_raising(error))
        with pytest.raises(error), cache.evaluation("head"):
            model(batches()[0])
        handle.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all("forward" not in vars(m) for m in model.modules())
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    both(model, lambda m: [m(x) for x in batches()], cache)


def _raising(error: type[BaseException]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        raise error

    return hook


@torch.no_grad()
def test_the_model_under_evaluation_looks_and_copies_as_ever() -> None:
    model, x = quiet(Net()), batches()[0]
    cache = PrefixCache(model, max_bytes=1 << 20)
    with cache.evaluation("head"):
        assert list(inspect.signature(model.forward).parameters) == ["x", "scale"]
        copied = copy.deepcopy(model)
        packed = io.BytesIO()
        pickle.dump(model, packed)
        unpacked = pickle.loads(packed.getvalue())
        expected = model(x)
    for other in (copied, unpacked):
        assert other.forward.__self__ is other
        other.head.weight.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(model(x), expected)


@torch.no_grad()
def test_a_forward_of_the_instance_is_kept() -> None:
    model = quiet(Net())
    ordinary = model.forward

    def own(x: Tensor) -> Tensor:
        return ordinary(x) + 1

    model.forward = own  # type: ignore[method-assign]
    cache = PrefixCache(model, max_bytes=1 << 20)
    x = batches()[0]
    expected = model(x)
    with cache.evaluation("head"):
        assert torch.equal(model(x), expected)
        assert copy.deepcopy(model).forward is own
    assert model.forward is own


@torch.no_grad()
def test_threads_take_turns() -> None:
    model, data = quiet(Net()), batches(8)
    # Somebody else runs before anything is handed out.
    model.stem.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    cache = PrefixCache(model, max_bytes=1 << 20)
    for seed in range(3):
        with swapped(model, "blocks.1.b", seed):
            expected = [model(x) for x in data]
            got: dict[int, Tensor] = {}

            def work(index: int, got: dict[int, Tensor] = got) -> None:
                with torch.no_grad():
                    got[index] = model(data[index])

            with cache.evaluation("blocks.1.b"):
                threads = [threading.Thread(target=work, args=(index,)) for index in range(len(data))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert all(torch.equal(got[index], one) for index, one in enumerate(expected))


@torch.no_grad()
def test_fused_layers_stay_fused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = quiet(nn.Sequential(nn.Linear(6, 8), body, nn.Linear(8, 4)))
    cache = PrefixCache(model, max_bytes=1 << 20)
    both(model, lambda m: [m(x[None]) for x in batches()], cache, layers=("0", "2"))
    assert not cache._is_off
    assert len(cache._records) == 3


@torch.no_grad()
def test_a_call_that_ends_in_a_caught_error_is_not_recorded() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.Sequential(Failing())
            self.last = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + self.outer(x))

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Raising()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)
            except LookupError:
                return x

    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError

    model, x = quiet(Trying()), batches()[0]
    with recording(model, "last", stops=False) as recorder:
        expected = model(x)
    assert recorder.record is None
    with handing_out(model, recorder.record):
        assert torch.equal(model(x), expected)


def _evaluations(net: nn.Module, judge: Callable[[nn.Module], float], max_bytes: int) -> list[float]:
    """What a function says of a net with its head exchanged, three times."""
    cache = PrefixCache(net, max_bytes=max_bytes)
    values = []
    for seed in range(3):
        with swapped(net, "head", seed), cache.evaluation("head"), torch.no_grad():
            values.append(judge(net))
    return values


def test_functions_that_hook_modules_see_every_forward() -> None:
    def judge(net: nn.Module) -> float:
        seen: list[Tensor] = []
        handle = net.blocks[0].a.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
        out = sum(float(net(x).sum()) for x in batches())
        handle.remove()
        return out + sum(float(x.sum()) for x in seen)

    assert _evaluations(quiet(Net()), judge, 10**9) == _evaluations(quiet(Net()), judge, 0)


def test_functions_that_read_what_modules_keep_of_a_forward_see_the_last_one() -> None:
    class Keeps(Net):
        class Keeper(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                self.last = x * 2
                return x

        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Sequential(nn.ReLU(), Keeps.Keeper())

    def judge(net: nn.Module) -> float:
        return sum(float(net(x).sum() + net.act[1].last.sum()) for x in batches())

    assert _evaluations(quiet(Keeps()), judge, 10**9) == _evaluations(quiet(Keeps()), judge, 0)
