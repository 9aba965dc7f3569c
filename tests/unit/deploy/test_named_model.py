# SPDX-License-Identifier: Apache-2.0
"""The one wrapper of an export: names for all tensors that go in and come out, and nothing but tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.deploy import prepare
from slimrank.forward import Batch, as_batch, named_tensors


@dataclass
class Answer:
    scores: Tensor
    parts: list[Tensor]
    name: str = "answer"


class Several(nn.Module):
    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 6), make

    def forward(
        self, pixels: Tensor, *others: Tensor, scale: float = 1.0, mask: Tensor | None = None
    ) -> object:
        y = self.layer(pixels) * scale + sum(others)
        return self.make(y if mask is None else y * mask)


class Function(nn.Module):
    """A function of inputs in a dict."""

    def __init__(self, function: Callable[[Mapping[str, Tensor]], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Mapping[str, Tensor], x_a: Tensor | None = None) -> object:
        return self.function(x if x_a is None else {**x, "other": x_a})


def named(model: nn.Module, batch: Batch) -> seams.NamedModel:
    prepared = prepare(model.eval(), batch)
    return seams.named_model(prepared.model, batch, prepared.outputs)


def ones(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


# What a model returns, its names in a file, and the type that the wrapper returns.
RETURNS: Mapping[str, tuple[Callable[[Tensor], object], tuple[str, ...], type]] = {
    "tensor": (lambda y: y, ("output",), Tensor),
    "tuple": (lambda y: (y, y + 1), ("output_0", "output_1"), tuple),
    "tuple of one": (lambda y: (y,), ("output_0",), tuple),
    "list with None": (lambda y: [y, None, [y + 1]], ("output_0", "output_2_0"), tuple),
    "dict": (lambda y: {"logits": y, "n": 3, "box": {"a": y + 1}}, ("logits", "box_a"), dict),
    "numbers for keys": (lambda y: {0: y, 1: y + 1}, ("output_0", "output_1"), tuple),
    "dataclass": (lambda y: Answer(y, [y + 1, y > 0]), ("scores", "parts_0", "parts_1"), dict),
    "name of an input": (lambda y: {"mask": y, "z": y + 1}, ("output_mask", "z"), dict),
    "equal names": (
        lambda y: {"a_b": y, "a.b": y + 1, "a": {"b": y + 2}, "mask": y, "output_mask": y},
        ("a_b", "a_b_2", "a_b_2_2", "output_mask", "output_mask_2"),
        dict,
    ),
    "one tensor twice": (lambda y: {"a": y, "b": y}, ("a", "b"), dict),
}


@pytest.mark.parametrize("case", RETURNS)
def test_tensors_come_out_in_order_with_names(case: str) -> None:
    make, names, kind = RETURNS[case]
    model = Several(make)
    x, other, mask = ones(3, 4), ones(3, 6), torch.ones(3, 6)
    batch = Batch(args=(x, other, 2 * other), kwargs={"scale": 2.0, "mask": mask})
    wrapped = named(model, batch)
    assert wrapped.arguments == ("pixels", "others_1", "others_2", "mask")
    assert wrapped.fixed == {"scale": 2.0}
    assert tuple(wrapped.outputs.values()) == names
    with torch.no_grad():
        found = wrapped(x, other, 2 * other, mask=mask)
        result = model(x, other, 2 * other, scale=2.0, mask=mask)
    assert isinstance(found, kind)
    wanted = [tensor for _, tensor in named_tensors(result)]
    assert len(wanted) == len(names)
    assert all(map(torch.equal, (tensor for _, tensor in named_tensors(found)), wanted))
    by_name = wrapped.output_tensors(result)
    assert tuple(by_name) == names
    assert all(map(torch.equal, by_name.values(), wanted))
    assert not isinstance(found, dict) or tuple(found) == names


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("case", ["tensor", "dict"])
def test_what_is_prepared_is_exported_under_its_own_names(case: str, strict: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 5, (3, 1), padding="same"), nn.BatchNorm2d(5)

        def forward(self, pixels: Tensor, mask: Tensor | None = None) -> object:
            y = self.norm(self.conv(pixels)) * mask
            return y if case == "tensor" else {"logits": y, "name": "two"}

    x, mask = ones(3, 4, 6, 6), torch.ones(3, 1, 1, 1)
    wrapped = named(Two(), Batch(args=(x,), kwargs={"mask": mask}))
    batch = torch.export.Dim("batch")
    shapes = {"pixels": {0: batch}, "mask": {0: batch}}
    program = torch.export.export(wrapped, (x,), {"mask": mask}, dynamic_shapes=shapes, strict=strict)
    assert program.graph_signature.user_inputs == wrapped.arguments == ("pixels", "mask")
    assert len(program.graph_signature.user_outputs) == 1
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    other, result = ones(5, 4, 6, 6), program.module()(ones(5, 4, 6, 6), mask=mask[:1].expand(5, 1, 1, 1))
    with torch.no_grad():
        wanted = wrapped(other, torch.ones(5, 1, 1, 1))
    if case == "dict":
        result, wanted = result["logits"], wanted["logits"]
    assert torch.equal(result, wanted)


def test_inputs_in_containers_are_named_by_their_path() -> None:
    x = ones(3, 4)
    batch = Batch(args=({"image": x, "more": [x + 1]},), kwargs={})
    wrapped = named(Function(lambda inputs: inputs["image"] + inputs["more"][0]), batch)
    assert wrapped.arguments == ("x",)
    tensors = wrapped.input_tensors(batch)
    assert tuple(tensors) == ("x_image", "x_more_0")
    assert torch.equal(tensors["x_more_0"], x + 1)


def test_no_name_is_given_twice() -> None:
    x = ones(3, 4)
    batch = Batch(args=({"a": x}, x + 1), kwargs={})
    wrapped = named(Function(lambda inputs: {"x_a": inputs["a"], "x_a_2": inputs["other"]}), batch)
    tensors = wrapped.input_tensors(batch)
    assert tuple(tensors) == ("x_a", "x_a_2")
    assert torch.equal(tensors["x_a_2"], x + 1)
    assert tuple(wrapped.outputs.values()) == ("output_x_a", "output_x_a_2")


def test_arguments_without_a_name_are_called_input() -> None:
    class Any(nn.Module):
        def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            return sum(args) + sum(kwargs.values())

    x = ones(3, 4)
    assert named(Any(), as_batch(x)).arguments == ("input",)
    assert named(Any(), as_batch((x, x))).arguments == ("input_0", "input_1")
    batch = Batch(args=(x, x + 1), kwargs={"input_1": x + 2})
    wrapped = named(Any(), batch)
    assert wrapped.arguments == ("input_0", "input_1_2", "input_1")
    torch.testing.assert_close(wrapped(x, x + 1, input_1=x + 2), 3 * x + 3)


def test_an_output_that_is_missing_for_another_batch_is_refused() -> None:
    wrapped = named(Several(lambda y: {"y": y, "more": y} if len(y) > 1 else {"y": y}), as_batch(ones(2, 4)))
    with pytest.raises(sr.ExportError, match=r"Several did not return 'more' for every batch; wrap"):
        wrapped(ones(1, 4))


@pytest.mark.parametrize("keyword", ["my-key", "class"])
def test_a_keyword_that_is_no_name_is_refused(keyword: str) -> None:
    class Keywords(nn.Module):
        def forward(self, **inputs: Tensor) -> Tensor:
            return inputs[keyword] + 1

    with pytest.raises(sr.ExportError, match=f"Keywords takes '{keyword}', which cannot name.*; wrap"):
        named(Keywords(), Batch(args=(), kwargs={keyword: ones(3, 4)}))
