# SPDX-License-Identifier: Apache-2.0
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from slimrank import BatchesTypeError, DeviceError, NonFiniteError
from slimrank.forward import (
    as_batch,
    batch_tensors,
    check_batch,
    digest_batch,
    map_tensors,
    named_tensors,
    take_samples,
)

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Answer:
    scores: Tensor
    name: str


def test_as_batch_reads_tensor_tuple_and_mapping() -> None:
    x = torch.zeros(3, 2)
    assert as_batch(x).args == (x,)
    assert as_batch((x, 1)).args == (x, 1)
    assert as_batch([x, 1]).args == (x, 1)
    assert as_batch({"x": x}).kwargs == {"x": x}


def test_as_batch_refuses_the_rest() -> None:
    with pytest.raises(BatchesTypeError, match=r"a batch is a int; give a tensor, a tuple .*inputs="):
        as_batch(3)


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.tensor(1.0), torch.zeros(4)), 4),
        ({"scale": 2, "x": torch.zeros(3, 1)}, 3),
        (([torch.zeros(2), torch.zeros(3)],), 2),
        (({"x": torch.zeros(6, 1)},), 6),
        ((1, "a"), 1),
    ],
)
def test_samples_are_counted_on_the_first_tensor(raw: object, count: int) -> None:
    assert as_batch(raw).n_samples == count


def test_named_tensors_walk_containers() -> None:
    x = torch.zeros(1)
    value = {"a": [x, None, {"b": x}], "c": Answer(scores=x, name="n"), "d": Point(x, 2)}
    assert [name for name, _ in named_tensors(value)] == ["a.0", "a.2.b", "c.scores", "d.0"]
    assert [name for name, _ in named_tensors(x)] == [""]


def test_map_tensors_keeps_types_and_the_rest() -> None:
    x = torch.ones(2)
    value = {"a": (x, 3), "b": [x], "c": Answer(scores=x, name="n"), "d": Point(x, "y")}
    mapped = map_tensors(value, lambda t: t + 1)
    assert isinstance(mapped, dict)
    assert torch.equal(mapped["a"][0], x + 1)
    assert mapped["a"][1] == 3
    assert mapped["c"].name == "n"
    assert torch.equal(mapped["c"].scores, x + 1)
    assert isinstance(mapped["d"], Point)
    assert torch.equal(value["b"][0], torch.ones(2))


def test_take_samples_picks_everywhere() -> None:
    x = torch.arange(8.0).reshape(4, 2)
    batch = as_batch(
        {"x": x, "list": [x[i] for i in range(4)], "n": 4, "table": torch.zeros(3, 2), "deep": {"x": x}}
    )
    taken = take_samples(batch, [1, 3])
    assert taken.n_samples == 2
    assert torch.equal(taken.kwargs["x"], x[[1, 3]])
    assert len(taken.kwargs["list"]) == 2
    assert torch.equal(taken.kwargs["list"][1], x[3])
    assert taken.kwargs["n"] == 4
    assert taken.kwargs["table"].shape == (3, 2)
    assert torch.equal(taken.kwargs["deep"]["x"], x[[1, 3]])


def test_check_batch_names_the_argument() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(NonFiniteError, match=r"batch 3, mask: 2 of 4 values are nan or inf; clean the data"):
        check_batch(
            as_batch({"mask": torch.tensor([1.0, float("nan"), float("inf"), 0.0])}), model, "batch 3"
        )
    with pytest.raises(DeviceError, match=r"batch 0, argument 1: the tensor is on meta, the model on cpu"):
        check_batch(as_batch((torch.zeros(1), torch.zeros(1, device="meta"))), model, "batch 0")
    check_batch(as_batch(torch.tensor([1, 2])), model, "batch 0")


def test_digest_tells_values_names_and_dtypes_apart() -> None:
    x = torch.arange(4.0)
    digests = {
        digest_batch(as_batch(raw))
        for raw in (
            x,
            x + 1,
            x.double(),
            x.reshape(2, 2),
            {"x": x},
            {"y": x},
            (x, torch.tensor(1)),
            (x, torch.tensor(2)),
            x.bfloat16(),
            x.bool(),
        )
    }
    assert len(digests) == 10
    assert digest_batch(as_batch(x)) == digest_batch(as_batch(x.clone()))
    assert digest_batch(as_batch(x.reshape(2, 2).T)) != digest_batch(as_batch(x.reshape(2, 2)))


def test_digest_tells_plain_values_apart() -> None:
    x = torch.arange(4.0)
    assert digest_batch(as_batch({"x": x, "scale": 1})) != digest_batch(as_batch({"x": x, "scale": 2}))


def test_batch_tensors_are_named_by_argument() -> None:
    x = torch.zeros(1)
    assert [name for name, _ in batch_tensors(as_batch((x, [x])))] == ["argument 0", "argument 1.0"]
    assert [name for name, _ in batch_tensors(as_batch({"a": {"b": x}}))] == ["a.b"]
