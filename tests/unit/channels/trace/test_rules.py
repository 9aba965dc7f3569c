# SPDX-License-Identifier: Apache-2.0
"""What single operations do to channels that go through them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seams import Op, Traced
from slimrank.capture import describe_layers
from slimrank.channels import read_groups
from slimrank.forward import as_batch
from slimrank.records import GroupSpec
from slimrank.surgery import quiet_copy


class Between(nn.Module):
    """A function between a convolution of 6 channels and whatever reads them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Conv2d(3, 6, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.a(x))
        if not hasattr(self, "b"):
            self.b = nn.Conv2d(y.shape[1], 2, 1)
        return self.b(y)


def group_of(function: Callable[[Tensor], Tensor]) -> GroupSpec:
    model, x = Between(function), torch.randn(1, 3, 8, 8)
    model(x)
    model = quiet_copy(model)
    return read_groups(model, as_batch(x), describe_layers(model)).groups["a"]


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1]).flip(0)


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over places": lambda x: x.softmax(-1),
    "cumsum over places": lambda x: x.cumsum(2),
    "sort over places": lambda x: x.sort(-1)[0],
    "topk over places": lambda x: x.topk(4, -1)[0],
    "amax over places": lambda x: x.amax((2, 3), keepdim=True),
    "max over places": lambda x: x.max(2, keepdim=True)[0],
    "var over places": lambda x: x.var((2, 3), keepdim=True),
    "norm over places": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "gather": lambda x: x.gather(3, places(x).expand_as(x)),
    "take along": lambda x: x.take_along_dim(places(x)[None, None, None], 3),
    "scatter": lambda x: torch.zeros_like(x).scatter(3, places(x).expand_as(x), x),
    "index select": lambda x: x.index_select(3, places(x)),
    "indexed places": lambda x: x[:, :, places(x), places(x)][..., None],
    "indexed first": lambda x: x.permute(2, 3, 0, 1)[places(x)].permute(2, 3, 0, 1),
    "put at places": lambda x: x.clone().index_put((*[torch.zeros(1, dtype=torch.long)],), x[:1]),
    "roll places": lambda x: x.roll((1, 1), (2, 3)),
    "flip places": lambda x: x.flip(-1),
    "windows": lambda x: x.unfold(2, 3, 1).mean(-1),
    "reflected": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicated": lambda x: functional.pad(x, (1, 1, 1, 1), mode="replicate"),
    "circular": lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"),
    "tril": lambda x: x.tril(),
    "bicubic": lambda x: functional.interpolate(x, size=(5, 5), mode="bicubic"),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "max pool": lambda x: functional.max_pool2d(x, 3, return_indices=True)[0],
    "unpooled": lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2),
    "fold": lambda x: functional.fold(functional.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "dropout": lambda x: functional.dropout(x, 0.5, training=True),
    "comparison": lambda x: x * (x > 0) + torch.full_like(x, 2.0),
    "bfloat": lambda x: x.bfloat16().float(),
    "in place": lambda x: x.clone().mul_(2).clamp_(0, 1).add_(x),
    "in place on a view": lambda x: x.clone().flatten(2).add_(1).unflatten(2, (8, 8)),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2)))).flatten(3),
    "same strides": lambda x: x.as_strided(x.shape, x.stride()),
    "batched product": lambda x: x.flatten(0, 1) @ x.flatten(0, 1).transpose(1, 2) @ x,
    "grid sample": lambda x: functional.grid_sample(x, torch.zeros(1, 4, 4, 2), align_corners=False),
    "thrown away": lambda x: (x, x.softmax(1), x.mean(1))[0],
    "weights that are added": lambda x: torch.lerp(x, x.sigmoid(), 0.5),
    "squeezed": lambda x: x[:, None].squeeze(1).unsqueeze(0).squeeze()[None],
}
FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), "aten._softmax"),
    "cumsum": (lambda x: x.cumsum(1), "aten.cumsum"),
    "sort": (lambda x: x.sort(1)[0], "aten.sort"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "aten.mean"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), "aten.argmax"),
    "sum of all": (lambda x: x / x.sum(), "aten.sum"),
    "normalize": (lambda x: functional.normalize(x, dim=1), "aten.linalg_vector_norm"),
    "select": (lambda x: x * x[:, 0], "aten.select"),
    "unbind": (lambda x: torch.stack(x.unbind(1)[::-1], 1), "aten.unbind"),
    "permuted by index": (lambda x: x[:, [1, 0, 2, 3, 4, 5]], "aten.index"),
    "picked": (lambda x: x.index_select(1, torch.tensor([0, 1])), "aten.index_select"),
    "roll": (lambda x: x.roll(1, 1), "aten.roll"),
    "mask": (lambda x: x[x > 0][:16].view(1, 1, 4, 4), "aten.index"),
    "nonzero": (lambda x: x.nonzero()[:4, :1, None, None].float(), "aten.nonzero"),
    "strided": (lambda x: x.as_strided((1, 6, 4, 8), (0, 64, 16, 1)), "aten.as_strided"),
    "channels as places": (lambda x: functional.avg_pool2d(x.transpose(1, 2), 2), "aten.avg_pool2d"),
    "put at channels": (
        lambda x: torch.zeros_like(x).index_put((torch.tensor([0]), torch.tensor([1])), x[:, 0]),
        "aten.select",
    ),
    "gathered channels": (lambda x: x.gather(1, x.argsort(1)), "aten.sort"),
    "windows of channels": (lambda x: x.unfold(1, 3, 1).mean(-1), "aten.unfold"),
    "no rule": (lambda x: torch.renorm(x, 2, 1, 1.0), "aten.renorm"),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_pass(name: str) -> None:
    group = group_of(FREE[name])
    assert (group.reason, group.units) == (None, 6)


@pytest.mark.parametrize("name", FROZEN)
def test_channels_are_frozen_by_name(name: str) -> None:
    function, reason = FROZEN[name]
    found = group_of(function).reason
    assert found is not None
    assert found.startswith(reason)
    assert "test_rules.py:" in found


@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        (nn.Conv1d, lambda y: y.flatten(2)),
        (nn.Conv3d, lambda y: y[:, :, None]),
        (nn.ConvTranspose1d, lambda y: y.flatten(2)),
    ],
)
def test_kernels_of_other_dimensions(kernel: type[nn.Module], function: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), kernel(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(function(self.a(x)))

    model = quiet_copy(Net())
    found = read_groups(model, as_batch(torch.randn(1, 3, 4, 4)), describe_layers(model))
    assert found.groups["a"].reason is None
    assert found.tensors["b.weight"].positions == 16


def test_an_argument_that_is_no_tensor_is_named() -> None:
    traced = Traced(nn.Linear(2, 2))
    op = Op(traced, torch.ops.aten.relu.default, (3,), {}, torch.ones(2))
    with pytest.raises(TypeError, match=r"aten\.relu: self is 3, no tensor"):
        op.tensor("self")


class Grouped(nn.Module):
    """Experts in one tensor each, whose rows are sorted by expert."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
        self.up, self.down = (
            nn.Parameter(torch.randn(shape) / 4) for shape in ((3, 16, hidden), (3, hidden, 16))
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = self.inp(x)
        ends = torch.tensor([2, 5, len(rows)], dtype=torch.int32)
        hidden = functional.grouped_mm(rows, self.up, offs=ends).relu()
        return self.out(functional.grouped_mm(hidden, self.down, offs=ends))


@pytest.mark.skipif(not hasattr(functional, "grouped_mm"), reason="an older torch has none")
def test_rows_in_groups_keep_the_neurons_of_their_matrices_together() -> None:
    """In fours, since the kernel wants rows that begin at multiples of 16 bytes."""
    model = quiet_copy(Grouped(24))
    x = torch.randn(9, 8)
    found = read_groups(model, as_batch(x), describe_layers(model))
    (name,) = [axis.group for axis in found.tensors["up"].axes if axis.dim == 2 and axis.units[4] == 1]
    group = found.groups[name]
    assert (group.reason, group.units, group.unit_width) == (None, 6, 4)
    before = model(x)
    hidden = torch.cat([model.up.detach()[:, :, :20], torch.zeros(3, 16, 4)], 2)
    model.up = nn.Parameter(hidden)
    masked = model(x)
    model.up, model.down = (
        nn.Parameter(hidden[:, :, :20].contiguous()),
        nn.Parameter(model.down[:, :20].detach()),
    )
    torch.testing.assert_close(model(x), masked)
    assert not torch.allclose(before, masked)
