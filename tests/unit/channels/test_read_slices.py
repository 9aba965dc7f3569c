# SPDX-License-Identifier: Apache-2.0
"""Whatever units go: the sliced net gives what the whole one gives with the consumers' columns zeroed."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from slimrank.capture import describe_layers
from slimrank.channels import read_groups
from slimrank.forward import as_batch
from slimrank.records import ChannelMap, TensorSpec
from slimrank.surgery import quiet_copy

Kept = Mapping[str, Sequence[int]]


def put(model: nn.Module, name: str, value: Tensor) -> None:
    holder, _, key = name.rpartition(".")
    module = model.get_submodule(holder)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[key] = value


def stays(spec: TensorSpec, dim: int, kept: Kept) -> np.ndarray:
    mask = np.ones(spec.shape[dim], bool)
    for axis in spec.axes:
        if axis.dim == dim and axis.group in kept:
            units = np.array(axis.units)
            mask &= (units == -1) | np.isin(units, kept[axis.group])
    return mask


def regroup(module: nn.Module, args: tuple[Tensor]) -> None:
    module.groups = args[0].shape[1] // module.weight.shape[1]


def sliced(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    model = copy.deepcopy(model)
    for name, spec in found.tensors.items():
        value = model.get_parameter(name) if spec.is_parameter else model.get_buffer(name)
        for dim in range(len(spec.shape)):
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(stays(spec, dim, kept))))
        put(model, name, value)
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose2d) and module.groups > 1:
            # Its weight does not tell: as many as units of the group that stands first.
            outer = found.tensors[f"{name}.weight"].axes[0].group
            module.groups = len(kept.get(outer, range(found.groups[outer].units)))
        elif isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
            module.register_forward_pre_hook(regroup)
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = len(module.weight) * module.num_groups // module.num_channels
        elif isinstance(module, nn.InstanceNorm2d):
            module.num_features = len(module.weight)
    return model


def zeroed(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    model = copy.deepcopy(model)
    for name, spec in found.tensors.items():
        value = (model.get_parameter(name) if spec.is_parameter else model.get_buffer(name)).clone()
        for axis in spec.axes:
            if axis.group not in kept:
                continue
            if axis.role == ("output" if found.groups[axis.group].is_inner else "input"):
                goes = [unit != -1 and unit not in kept[axis.group] for unit in axis.units]
                value.index_fill_(axis.dim, torch.tensor(np.flatnonzero(goes)), 0)
        put(model, name, value)
    return model


class Wrapped(nn.Module):
    def __init__(self, function: Callable[..., object], **modules: object) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def conv(n_in: int, n_out: int, **options: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, **options), nn.BatchNorm2d(n_out), nn.SiLU())


def around(function: Callable[..., object], n_mid: int, n_out: int, **modules: object) -> nn.Module:
    """A convolution, the function of its output, and another one."""
    return Wrapped(
        lambda self, x: self.leave(function(self, self.enter(x))).flatten(1),
        enter=conv(3, n_mid),
        leave=nn.Conv2d(n_out, 2, 1),
        **modules,
    )


def shuffled(self: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, self.sections, c // self.sections, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffled_halves(self: nn.Module, x: Tensor) -> Tensor:
    for branch in (self.a, self.b):
        n, c, h, w = x.shape
        first, second = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, 1)
        x = torch.cat([first, branch(second)], 1)
    return x


def gated(self: nn.Module, x: Tensor) -> Tensor:
    gate = self.up(functional.relu(self.down(x.mean((2, 3)))))
    return x * gate.sigmoid()[:, :, None, None]


def filled(self: nn.Module, x: Tensor) -> Tensor:
    y = self.side(x)
    out = x.new_zeros(x.shape[0], x.shape[1] + y.shape[1], *x.shape[2:])
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = y
    return out


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "residual": lambda: around(
        lambda s, x: functional.relu(s.b(s.a(x)) + x), 6, 6, a=conv(6, 5), b=conv(5, 6)
    ),
    "concat": lambda: around(
        lambda s, x: s.n(torch.cat([x, s.a(x)], 1)), 6, 10, a=conv(6, 4), n=nn.BatchNorm2d(10)
    ),
    "dense": lambda: around(
        lambda s, x: torch.cat([y := torch.cat([x, s.a(x)], 1), s.b(y)], 1),
        6,
        13,
        a=conv(6, 4),
        b=conv(10, 3),
    ),
    "depthwise": lambda: around(lambda s, x: s.a(x), 6, 6, a=conv(6, 6, groups=6)),
    "depth multiplier": lambda: around(lambda s, x: s.a(x), 6, 12, a=conv(6, 12, groups=6)),
    "grouped": lambda: around(lambda s, x: s.a(x), 8, 12, a=conv(8, 12, groups=4)),
    "grouped twice": lambda: around(
        lambda s, x: s.b(s.a(x)), 8, 8, a=conv(8, 8, groups=2), b=conv(8, 8, groups=4)
    ),
    "transposed": lambda: around(lambda s, x: s.a(x), 6, 4, a=nn.ConvTranspose2d(6, 4, 2, 2)),
    "transposed groups": lambda: around(
        lambda s, x: s.a(x), 6, 4, a=nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
    ),
    "group norm": lambda: around(lambda s, x: s.n(x), 8, 8, n=nn.GroupNorm(4, 8)),
    "instance norm": lambda: around(lambda s, x: s.n(x), 8, 8, n=nn.InstanceNorm2d(8, affine=True)),
    "prelu": lambda: around(lambda s, x: s.n(x), 8, 8, n=nn.PReLU(8)),
    "squeeze and excite": lambda: around(gated, 6, 6, down=nn.Linear(6, 3), up=nn.Linear(3, 6)),
    "gate by halves": lambda: around(lambda _, x: functional.glu(x, 1), 12, 6),
    "chunks": lambda: around(lambda _, x: (c := x.chunk(2, 1))[0] * c[1].sigmoid(), 12, 6),
    "slices": lambda: around(lambda _, x: x[:, : x.shape[1] // 2] - x[:, x.shape[1] // 2 :], 12, 6),
    "every other": lambda: around(lambda _, x: x[:, ::2] - x[:, 1::2], 12, 6),
    "shuffle": lambda: around(shuffled, 8, 8, sections=2),
    "shuffle twice": lambda: around(shuffled_halves, 16, 16, a=conv(8, 8), b=conv(8, 8)),
    "pixel shuffle": lambda: around(lambda _, x: functional.pixel_shuffle(x, 2), 12, 3),
    "pixel unshuffle": lambda: around(lambda _, x: functional.pixel_unshuffle(x, 2), 3, 12),
    "flip": lambda: around(lambda _, x: x + x.flip(1), 6, 6),
    "stack": lambda: around(lambda s, x: torch.stack([x, s.a(x)]).sum(0), 6, 6, a=conv(6, 6)),
    "resize": lambda: around(lambda _, x: functional.interpolate(x, scale_factor=2, mode="bilinear"), 6, 6),
    "pools": lambda: around(
        lambda _, x: (
            functional.max_pool2d(x, 2) + functional.avg_pool2d(x, 2) + functional.adaptive_max_pool2d(x, 4)
        ),
        6,
        6,
    ),
    "unfold": lambda: around(
        lambda _, x: functional.unfold(x, 3, padding=1).unflatten(2, x.shape[2:]), 4, 36
    ),
    "padded channels": lambda: around(
        lambda s, x: functional.pad(x, (0, 0, 0, 0, 1, 2)) + s.a(x), 6, 9, a=conv(6, 9)
    ),
    "filled in": lambda: around(filled, 6, 10, side=conv(6, 4)),
    "weight norm": lambda: around(
        lambda s, x: s.a(x), 6, 5, a=parametrizations.weight_norm(nn.Conv2d(6, 5, 1))
    ),
    "split": lambda: around(
        lambda s, x: torch.cat([s.a(x[:, : len(x[0]) // 3]), x[:, len(x[0]) // 3 :]], 1), 9, 10, a=conv(3, 4)
    ),
    "repeated": lambda: around(lambda _, x: x.repeat(1, 2, 1, 1), 6, 12),
    "interleaved": lambda: around(lambda _, x: x.repeat_interleave(2, 1), 6, 12),
    "expanded gate": lambda: around(lambda _, x: x * x.mean((2, 3), keepdim=True).expand_as(x), 6, 6),
    "masked": lambda: around(lambda _, x: torch.where(x > 0, x, x * 0.1).masked_fill(x > 2, 1.0), 6, 6),
    "grid sample": lambda: around(
        lambda _, x: functional.grid_sample(x, x.new_zeros(len(x), 4, 4, 2), align_corners=False), 6, 6
    ),
    "einsum": lambda: around(
        lambda s, x: torch.einsum("nchw,dc->ndhw", x, s.a.weight), 6, 5, a=nn.Linear(6, 5, bias=False)
    ),
    "channels last": lambda: around(
        lambda s, x: s.b(functional.gelu(s.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        6,
        5,
        a=nn.Linear(6, 7),
        b=nn.Linear(7, 5),
    ),
    "batch norm 1d": lambda: around(
        lambda s, x: s.n(x.flatten(2)).unflatten(2, x.shape[2:]), 6, 6, n=nn.BatchNorm1d(6)
    ),
}


def settled(model: nn.Module) -> nn.Module:
    model = quiet_copy(model.double())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
                module.weight.normal_()
                module.bias.normal_()
    return model


def resized(model: nn.Module, counts: Mapping[str, int]) -> None:
    """What the code of a net keeps as a number."""
    if hasattr(model, "sections"):
        model.sections = counts.get("enter.0", model.sections)


def check(model: nn.Module, inputs: Tensor, found: ChannelMap, kept: Kept) -> None:
    slim, masked = sliced(model, found, kept), zeroed(model, found, kept)
    resized(slim, {name: len(units) for name, units in kept.items()})
    torch.testing.assert_close(slim(inputs), masked(inputs), rtol=1e-9, atol=1e-9)


def choose(found: ChannelMap, names: Sequence[str], rng: torch.Generator) -> Kept:
    kept = {}
    for name in names:
        units = found.groups[name].units
        count = int(torch.randint(1, units, (), generator=rng))
        kept[name] = sorted(torch.randperm(units, generator=rng)[:count].tolist())
    return kept


@pytest.mark.parametrize("name", NETS)
def test_sliced_equals_zeroed(name: str, rng: torch.Generator) -> None:
    torch.manual_seed(1)
    model = settled(NETS[name]())
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=rng)
    found = read_groups(model, as_batch(inputs), describe_layers(model))
    names = [group.name for group in found.groups.values() if group.reason is None]
    assert names
    for chosen in [*([one] for one in names), names, names]:
        check(model, inputs, found, choose(found, chosen, rng))
