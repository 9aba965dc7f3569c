# SPDX-License-Identifier: Apache-2.0
"""Calibration batches: what is refused, how samples are split and cut, and that they stay the same."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slimrank import BatchesError, BatchesTypeError, DeviceError, NonFiniteError
from slimrank.calibrate import Feed, first_batch, open_feed

_MODEL = nn.Linear(2, 2)


def _samples(count: int) -> Tensor:
    """(count, 2): the first column is the index of the sample."""
    return torch.stack([torch.arange(count, dtype=torch.float32), torch.ones(count)], dim=1)


def _open(
    batches: Iterable[object],
    *,
    inputs: Callable[[object], object] | None = None,
    can_split: bool = True,
    output_elements: int = 4,
    holdout: float = 0.2,
    seed: int = 0,
) -> Feed:
    return open_feed(
        batches,
        inputs,
        _MODEL,
        can_split=can_split,
        output_elements=output_elements,
        holdout=holdout,
        seed=seed,
    )


def _seen(feed: Feed, indices: Iterable[int]) -> list[list[int]]:
    """Indices of the samples in each micro-batch."""
    return [[int(i) for i in batch.args[0][:, 0]] for batch in feed.stream(indices)]  # type: ignore[index]


# --- the first batch ---


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.zeros(4, 2), r"a bare tensor \[4, 2\]; give a list of batches, e.g. \[tensor\]"),
        ((torch.zeros(1, 2) for _ in range(3)), "is a generator that can be read only once; pass list"),
        (iter([torch.zeros(1, 2)]), "is a list_iterator that can be read only once"),
        ({"x": torch.zeros(1, 2)}, "batches is a dict; give a re-iterable of batches"),
        ("data", "batches is a str; give a re-iterable"),
        (_MODEL, "batches is a Linear; give a re-iterable"),
        (7, "batches is a int, which cannot be iterated; give a list or a DataLoader"),
        ([object()], "a batch is a object; give a tensor, a tuple"),
    ],
    ids=["tensor", "generator", "iterator", "dict", "str", "model", "int", "object"],
)
def test_what_cannot_be_read_again_is_refused(batches: object, message: str) -> None:
    with pytest.raises(BatchesTypeError, match=message):
        first_batch(batches, None, _MODEL)


def test_no_batches_are_refused() -> None:
    with pytest.raises(BatchesError, match="batches is empty; give at least one batch"):
        first_batch([], None, _MODEL)


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(BatchesError, match="batch 0 holds no sample"):
        first_batch([torch.zeros(0, 2)], None, _MODEL)
    with pytest.raises(BatchesError, match="batch 1 holds no sample"):
        _open([torch.zeros(3, 2), torch.zeros(0, 2)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    batch = torch.ones(3, 2)
    batch[1, 0] = bad
    with pytest.raises(NonFiniteError, match="batch 0, argument 0: 1 of 6 values are nan or inf"):
        first_batch([batch], None, _MODEL)
    with pytest.raises(NonFiniteError, match="batch 1, x: 1 of 6 values are nan or inf"):
        _open([{"x": torch.ones(3, 2)}, {"x": batch}])


def test_another_device_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"batch 0, argument 0: the tensor is on cpu, the model on meta"):
        first_batch([torch.ones(3, 2)], None, nn.Linear(2, 2, device="meta"))


def test_the_first_batch_goes_through_inputs() -> None:
    batch = first_batch([(torch.ones(3, 2), torch.zeros(3))], lambda pair: pair[0], _MODEL)  # type: ignore[index]
    assert len(batch.args) == 1
    assert batch.n_samples == 3


# --- the split ---


def test_the_split_is_by_index_and_repeatable() -> None:
    batches = list(_samples(50).split(8))
    feed = _open(batches)
    assert feed.n_samples == 50
    assert feed.sizes == (8,) * 6 + (2,)
    assert len(feed.held_out) == 10
    assert list(feed.held_out) == sorted(feed.held_out)
    assert sorted((*feed.fit, *feed.held_out)) == list(range(50))
    assert _open(batches).held_out == feed.held_out
    # The cut into batches, and the values, change nothing.
    assert _open([-_samples(50)]).held_out == feed.held_out
    assert _open(batches, seed=1).held_out != feed.held_out


@pytest.mark.parametrize(
    ("count", "holdout", "held_out"), [(10, 0.01, 1), (10, 0.25, 2), (10, 0.99, 9), (2, 0.5, 1), (1, 0.2, 1)]
)
def test_both_sides_hold_at_least_one_sample(count: int, holdout: float, held_out: int) -> None:
    feed = _open([_samples(count)], holdout=holdout)
    assert len(feed.held_out) == held_out
    # The only sample there is has to serve both.
    assert len(feed.fit) == (count - held_out or 1)


def test_the_fingerprint_follows_the_values() -> None:
    same = _open([_samples(6)]).fingerprint
    assert _open([_samples(6).clone()]).fingerprint == same
    changed = _samples(6)
    changed[3, 1] += 1e-6
    assert _open([changed]).fingerprint != same
    assert _open(list(_samples(6).split(3))).fingerprint != same
    assert _open([_samples(6).double()]).fingerprint != same


# --- the stream ---


@pytest.mark.parametrize("sizes", [[50], [8, 8, 30, 4], [1] * 50], ids=["one", "uneven", "single"])
def test_the_stream_gives_the_samples_asked_for(sizes: list[int]) -> None:
    feed = _open(list(_samples(50).split(sizes)))
    flat = [index for batch in _seen(feed, feed.fit) for index in batch]
    assert flat == list(feed.fit)
    assert [i for batch in _seen(feed, [49, 3, 3, 0]) for i in batch] == [0, 3, 49]
    assert _seen(feed, []) == []
    # A second pass gives the same.
    assert _seen(feed, feed.fit) == _seen(feed, feed.fit)


@pytest.mark.parametrize(("output_elements", "micro_size"), [(4, 128), (10**7, 5), (10**9, 1)])
def test_micro_batches_follow_the_size_of_the_activations(output_elements: int, micro_size: int) -> None:
    feed = _open([_samples(300)], output_elements=output_elements)
    assert feed.micro_size == micro_size
    sizes = [len(batch) for batch in _seen(feed, range(300))]
    assert max(sizes) == micro_size
    assert sum(sizes) == 300


def test_several_sets_of_samples_are_cut_in_one_pass() -> None:
    passes: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            passes.append(1)
            return iter(_samples(20).split(6))

    feed = replace(_open(Loader()), micro_size=4)
    parts = ([0, 1, 2, 7, 13], [], list(range(20)))
    passes.clear()
    found: list[list[list[int]]] = [[] for _ in parts]
    for part, batch in feed.stream_parts(parts):
        found[part].append([int(i) for i in batch.args[0][:, 0]])  # type: ignore[index]
    assert passes == [1]
    assert found == [_seen(feed, part) for part in parts]
    assert [list(chain(*part)) for part in found] == [list(part) for part in parts]


def test_micro_batches_do_not_cross_batches() -> None:
    feed = _open(list(_samples(9).split(3)), output_elements=25 * 10**6)
    assert feed.micro_size == 2
    assert _seen(feed, range(9)) == [[0, 1], [2], [3, 4], [5], [6, 7], [8]]


def test_all_arguments_are_cut_alike() -> None:
    x = _samples(6)
    feed = _open([{"x": x, "mask": x[:, 0] > 2, "scale": 0.5, "table": torch.ones(4, 2)}])
    (batch,) = feed.stream([1, 4])
    assert torch.equal(batch.kwargs["x"], x[[1, 4]])  # type: ignore[arg-type]
    assert batch.kwargs["mask"].tolist() == [False, True]  # type: ignore[attr-defined]
    assert batch.kwargs["scale"] == 0.5
    assert batch.kwargs["table"].shape == (4, 2)  # type: ignore[attr-defined]


def test_batches_that_cannot_be_cut_count_as_one_sample() -> None:
    feed = _open(list(_samples(12).split(4)), can_split=False)
    assert (feed.n_samples, feed.sizes, feed.micro_size) == (3, (1, 1, 1), 0)
    assert _seen(feed, [0, 2]) == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_a_loader_is_read_again_and_again() -> None:
    loader = DataLoader(TensorDataset(_samples(10)), batch_size=4)
    feed = _open(loader, inputs=lambda pair: pair[0])  # type: ignore[index]
    assert feed.sizes == (4, 4, 2)
    assert [i for batch in _seen(feed, range(10)) for i in batch] == list(range(10))


# --- data that change ---


def test_a_shuffling_loader_is_refused_on_the_second_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(_samples(30)), batch_size=5, shuffle=True, generator=generator)
    feed = _open(loader)
    with pytest.raises(BatchesError, match=r"batch 0 differs from what the first pass gave.*shuffle=False"):
        list(feed.stream(feed.fit))


class _Changing:
    """Re-iterable; gives one list of batches first, and another from then on."""

    def __init__(self, first: list[Tensor], then: list[Tensor]) -> None:
        self._passes = [first, then]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._passes.pop(0) if len(self._passes) > 1 else self._passes[0])


def test_batches_that_change_are_refused_by_number() -> None:
    first = list(_samples(9).split(3))
    feed = _open(_Changing(first, [first[0], first[1] + 1, first[2]]))
    with pytest.raises(BatchesError, match="batch 1 differs from what the first pass gave"):
        list(feed.stream(range(9)))


def test_more_batches_than_before_are_refused() -> None:
    first = list(_samples(9).split(3))
    feed = _open(_Changing(first[:2], first))
    with pytest.raises(BatchesError, match="batch 2 differs from what the first pass gave"):
        list(feed.stream(range(6)))


def test_batches_that_run_out_are_refused() -> None:
    first = list(_samples(9).split(3))
    feed = _open(_Changing(first, first[:2]))
    with pytest.raises(
        BatchesError, match="the batches ended after 2 of 3; give a re-iterable such as a list"
    ):
        list(feed.stream(range(9)))
