# SPDX-License-Identifier: Apache-2.0
"""Batches with targets: checks, the held-out ones, order, and what changes between passes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import slimrank as sr
from seams import TrainingData, open_training_data, read_with
from slimrank.recover import Inputs

_MODEL = nn.Linear(2, 3)


def _pairs(n: int = 10, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((size, 2), float(i)), torch.full((size,), i)) for i in range(n)]


def _open(
    batches: Iterable[object],
    *,
    inputs: Inputs = None,
    targets: Inputs = None,
    labelled: bool = True,
    holdout: float | Iterable[object] = 0.2,
    seed: int = 0,
) -> TrainingData:
    read = read_with(inputs, targets, _MODEL, labelled=labelled)
    return open_training_data(batches, read, _MODEL, holdout=holdout, seed=seed)


def _ids(examples: Iterable[object]) -> list[int]:
    return [int(example.batch.args[0][0, 0]) for example in examples]  # type: ignore[attr-defined]


class _Loader:
    """Re-iterable, no sequence; what it yields may change once it was checked (three ``iter``)."""

    def __init__(self, items: Iterable[object], *, change: int | None = None, shrink: bool = False) -> None:
        self._items, self._change, self._shrink, self._passes = list(items), change, shrink, 0

    def __iter__(self) -> Iterator[object]:
        self._passes += 1
        items = list(self._items)
        if self._passes > 3 and self._change is not None:
            items[self._change] = (torch.full((4, 2), 99.0), torch.zeros(4))
        return iter(items[:-1] if self._shrink and self._passes > 3 else items)


# --- which batches judge ---


@pytest.mark.parametrize(("n", "share", "count"), [(10, 0.2, 2), (10, 0.01, 1), (3, 0.99, 2), (2, 0.5, 1)])
def test_a_share_is_held_out_and_the_rest_is_trained_on(n: int, share: float, count: int) -> None:
    data = _open(_pairs(n), holdout=share)
    assert len(data.held_out) == count
    assert sorted({*data.held_out, *data.fit}) == list(range(n))
    assert len(data.fit) == n - count
    assert _ids(data.stream_held_out()) == list(data.held_out)
    assert sorted(_ids(data.stream_fit(1))) == list(data.fit)


def test_held_out_batches_are_spread_evenly_and_fixed_by_the_seed() -> None:
    chosen = {seed: _open(_pairs(100), holdout=0.1, seed=seed).held_out for seed in range(8)}
    for held_out in chosen.values():
        assert {b - a for a, b in pairwise(held_out)} == {10}
    assert len(set(chosen.values())) > 3
    assert _open(_pairs(100), holdout=0.1, seed=3).held_out == chosen[3]


def test_one_batch_serves_both() -> None:
    data = _open(_pairs(1))
    assert data.is_shared
    assert _ids(data.stream_fit(0)) == _ids(data.stream_held_out()) == [0]
    assert not _open(_pairs(2)).is_shared
    assert not _open(_pairs(1), holdout=_pairs(2)).is_shared


def test_other_batches_can_judge() -> None:
    data = _open(_pairs(3), holdout=[(torch.full((4, 2), 7.0), torch.zeros(4))])
    assert _ids(data.stream_held_out()) == [7]
    assert data.fit == (0, 1, 2)


# --- order ---


def test_a_sequence_is_permuted_by_the_seed_and_a_loader_is_not() -> None:
    data, loader = _open(_pairs(20)), _open(_Loader(_pairs(20)))
    assert _ids(data.stream_fit(None)) == list(data.fit)
    orders = [_ids(data.stream_fit(seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != list(data.fit)
    assert _ids(loader.stream_fit(1)) == list(loader.fit) == list(data.fit)


def test_a_shuffling_loader_needs_other_batches_to_judge() -> None:
    data = TensorDataset(torch.randn(40, 2), torch.arange(40))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    data = _open(loader)
    with pytest.raises(sr.BatchesError, match=r"batch \d differs .* shuffle=False .* or pass holdout="):
        list(data.stream_held_out())
    free = _open(loader, holdout=_pairs(2))
    assert free.fingerprint == _open(loader, holdout=_pairs(2)).fingerprint
    assert len(list(free.stream_held_out())) == 2
    assert len(list(free.stream_fit(0))) == 10


def test_batches_that_change_or_end_early_are_refused() -> None:
    held_out = _open(_pairs(10)).held_out
    changing = _open(_Loader(_pairs(10), change=held_out[1]))
    with pytest.raises(sr.BatchesError, match=f"batch {held_out[1]} differs from what the first pass gave"):
        list(changing.stream_held_out())
    with pytest.raises(sr.BatchesError, match="ended after 9, the first pass gave 10; give a re-iterable"):
        list(_open(_Loader(_pairs(10), shrink=True)).stream_fit(0))
    judges = _Loader(_pairs(3), shrink=True)
    with pytest.raises(sr.BatchesError, match="2 of 3 held-out batches came again; give a re-iterable"):
        list(_open(_pairs(3), holdout=judges).stream_held_out())


def test_the_fingerprint_follows_inputs_targets_and_the_choice() -> None:
    base = _open(_pairs()).fingerprint
    assert _open(_pairs()).fingerprint == base
    assert _open(_Loader(_pairs())).fingerprint == base
    relabelled = [(x, y + 1) for x, y in _pairs()]
    moved = [(x + 1, y) for x, y in _pairs()]
    others = [
        _open(relabelled),
        _open(moved),
        _open(_pairs(), holdout=0.4),
        _open(_pairs(), holdout=_pairs(1)),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 5


# --- what a batch is ---


def test_inputs_and_targets_pick_from_other_formats() -> None:
    raw: list[Mapping[str, Tensor]] = [{"x": torch.ones(4, 2), "label": torch.zeros(4)}]
    data = _open(raw, inputs=lambda b: {"input": b["x"]}, targets=lambda b: b["label"])
    (example,) = data.stream_fit(None)
    assert list(example.batch.kwargs) == ["input"]
    assert torch.equal(example.targets, torch.zeros(4))  # type: ignore[arg-type]
    (alone,) = _open([(torch.ones(4, 2), torch.zeros(4))], inputs=lambda b: b[0] + 1).stream_fit(None)
    assert torch.equal(alone.batch.args[0], torch.full((4, 2), 2.0))  # type: ignore[arg-type]
    assert torch.equal(alone.targets, torch.zeros(4))  # type: ignore[arg-type]
    (bare,) = _open([torch.ones(4, 2)], labelled=False).stream_fit(None)
    assert bare.targets is None


@pytest.mark.parametrize(
    ("batches", "options", "error", "words"),
    [
        (torch.zeros(4, 2), {}, sr.BatchesTypeError, r"a bare tensor \[4, 2\]; give a list of batches"),
        ((p for p in _pairs()), {}, sr.BatchesTypeError, "generator that can be read only once"),
        ([], {}, sr.BatchesError, "batches is empty"),
        ([torch.zeros(4, 2)], {}, sr.BatchesTypeError, r"batch 0 is a Tensor, not a pair .* pass inputs="),
        ([(1, 2, 3)], {}, sr.BatchesTypeError, "batch 0 is a tuple of 3, not a pair"),
        ([{"x": 1}], {}, sr.BatchesTypeError, "batch 0 is a dict, not a pair"),
        ([*_pairs(1), _pairs(1)[0][0]], {}, sr.BatchesTypeError, "batch 1 is a Tensor, not a pair"),
        ([(3, 4)], {}, sr.BatchesTypeError, "a batch is a int; give a tensor"),
        ([(torch.zeros(0, 2), torch.zeros(0))], {}, sr.BatchesError, "batch 0 holds no sample"),
        (
            [(torch.full((4, 2), float("nan")), torch.zeros(4))],
            {},
            sr.NonFiniteError,
            "batch 0, argument 0: 8 of 8 values are nan or inf",
        ),
        (_pairs(), {"inputs": 3}, sr.BatchesTypeError, "inputs=3 is no function; give one of a batch"),
        (_pairs(), {"targets": "y"}, sr.BatchesTypeError, "targets='y' is no function"),
        (
            _pairs(),
            {"inputs": lambda b: b["x"]},
            sr.BatchesError,
            "inputs= failed on batch 0, a tuple: TypeErr",
        ),
        (
            _pairs(),
            {"targets": lambda b: b[7]},
            sr.BatchesError,
            "targets= failed on batch 0, a tuple: IndexErr",
        ),
        (_pairs(), {"holdout": 0}, sr.OptionError, r"holdout=0 is outside \(0, 1\); give a share"),
        (_pairs(), {"holdout": 1.0}, sr.OptionError, r"holdout=1.0 is outside \(0, 1\)"),
        (_pairs(), {"holdout": True}, sr.OptionError, r"holdout=True is outside \(0, 1\)"),
        (_pairs(), {"holdout": float("nan")}, sr.OptionError, r"holdout=nan is outside \(0, 1\)"),
        (_pairs(), {"holdout": []}, sr.BatchesError, "holdout=: batches is empty"),
        (_pairs(), {"holdout": iter(_pairs())}, sr.BatchesTypeError, "holdout=: batches is a list_iterator"),
        (_pairs(), {"holdout": None}, sr.OptionError, r"holdout=None is outside \(0, 1\)"),
        (_pairs(), {"holdout": "all"}, sr.BatchesTypeError, "holdout=: batches is a str"),
    ],
)
def test_what_is_no_batch_is_refused(
    batches: Iterable[object], options: Mapping[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _open(batches, **options)  # type: ignore[arg-type]
