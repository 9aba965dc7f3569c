# SPDX-License-Identifier: Apache-2.0
"""A model made ready for exporters computes the same; what cannot be changed stays, with a reason."""

import copy
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm

import slimrank as sr
from slimrank.deploy import Prepared, prepare
from slimrank.forward import as_batch, named_tensors


def settled(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Statistics, scales and shifts of norms at random: what torch sets them to hides mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        for module in model.modules():
            for tensor in module.parameters(recurse=False):
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise if tensor.ndim < 2 else noise / tensor[0].numel() ** 0.5)
    return model.to(dtype).eval()


def images(n: int = 3, seed: int = 1, shape: tuple[int, ...] = (4, 6, 6)) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def checked(model: nn.Module, x: Tensor, tolerance: float = 1e-5) -> Prepared:
    """Prepared on one batch, and compared with the original on others of other sizes."""
    prepared = prepare(model, as_batch(x))
    for n in (1, 5):
        other = torch.cat([x.flip(-1), x.roll(1, 0) - 0.3])[:n]
        with torch.no_grad():
            wanted = [tensor for _, tensor in named_tensors(copy.deepcopy(model).eval()(other.clone()))]
            found = [tensor for _, tensor in named_tensors(prepared.model(other.clone()))]
        for before, after in zip(wanted, found, strict=True):
            assert before.dtype == after.dtype
            scale = before.double().abs().max()
            assert float((after.double() - before.double()).abs().max() / scale) <= tolerance
    return prepared


def norms_in(model: nn.Module) -> list[str]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def named(**modules: nn.Module) -> nn.Sequential:
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


class Net(nn.Module):
    """Modules by name, and a forward that a test writes."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> object:
        return self._run(self, x)


# Layer, norm and shape of one sample.
FOLDED: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), lambda: nn.BatchNorm1d(6), (4,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), (4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False), lambda: nn.BatchNorm2d(6), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), lambda: nn.BatchNorm2d(8), (4, 6, 6)),
    "reflected": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        lambda: nn.BatchNorm2d(6),
        (4, 6, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), lambda: nn.BatchNorm3d(6), (4, 4, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), lambda: nn.BatchNorm1d(6), (4, 5)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 2, 2, bias=False),
        lambda: nn.BatchNorm2d(6),
        (4, 3, 3),
    ),
    "transposed in groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        lambda: nn.BatchNorm2d(6),
        (4, 3, 3),
    ),
    "transposed depthwise": (
        lambda: nn.ConvTranspose2d(4, 4, 3, groups=4),
        lambda: nn.BatchNorm2d(4),
        (4, 3, 3),
    ),
    "transposed 3d": (
        lambda: nn.ConvTranspose3d(4, 6, 2, groups=2),
        lambda: nn.BatchNorm3d(6),
        (4, 2, 2, 2),
    ),
    "without affine": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6, affine=False), (4, 6, 6)),
    "large eps": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6, eps=0.5), (4, 6, 6)),
    "synchronised": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.SyncBatchNorm(6), (4, 6, 6)),
}


@pytest.mark.parametrize("case", FOLDED)
def test_norm_is_folded_into_the_layer_before(case: str) -> None:
    layer, norm, shape = FOLDED[case]
    model = settled(named(layer=layer(), norm=norm(), relu=nn.ReLU()))
    prepared = checked(model, images(shape=shape))
    assert type(prepared.model.norm) is nn.Identity
    assert not prepared.notes
    assert prepared.model.layer.bias is not None
    assert not any(p.requires_grad for p in prepared.model.parameters())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 8e-3), (torch.bfloat16, 6e-2)]
)
def test_other_types_are_folded_within_their_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = settled(
        named(a=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6), relu=nn.ReLU(), b=nn.Conv2d(6, 3, 3)), dtype
    )
    prepared = checked(model, images().to(dtype), tolerance)
    assert norms_in(prepared.model) == []
    assert {p.dtype for p in prepared.model.parameters()} == {dtype}


def test_folded_weights_are_computed_in_float64_and_keep_their_layout() -> None:
    model = settled(named(layer=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    model = model.to(memory_format=torch.channels_last)
    prepared = checked(model, images().to(memory_format=torch.channels_last))
    weight, norm = prepared.model.layer.weight, model.norm
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = (model.layer.weight.double() * scale.view(-1, 1, 1, 1)).float()
    torch.testing.assert_close(weight, wanted.detach(), rtol=1e-7, atol=0, check_stride=False)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_norms_in_a_row_and_behind_dropout_are_folded() -> None:
    model = settled(
        named(
            layer=nn.Conv2d(4, 6, 3),
            first=nn.BatchNorm2d(6),
            drop=nn.Dropout2d(0.5),
            second=nn.BatchNorm2d(6),
            relu=nn.ReLU(),
        )
    )
    prepared = checked(model, images())
    assert [type(module) for module in prepared.model] == [
        nn.Conv2d,
        *[nn.Identity] * 3,
        nn.ReLU,
    ]


def test_second_factor_of_a_pair_takes_the_norm() -> None:
    model = settled(
        named(
            conv=nn.Conv2d(4, 12, 3, padding="same"),
            norm=nn.BatchNorm2d(12),
            relu=nn.ReLU(),
            flat=nn.Flatten(),
            wide=nn.Linear(12 * 36, 16),
            flat_norm=nn.BatchNorm1d(16),
            head=nn.Linear(16, 5),
        )
    )
    batches = [images(8, seed) for seed in range(3)]
    study = sr.study(model, batches, methods=("weight_svd", "spatial_svd"), progress=False)
    result = study.apply(study.plan(macs=0.3))
    assert {"conv", "wide"} <= result.plan.steps[-1].settings.keys()
    prepared = checked(result.model, batches[0])
    assert norms_in(prepared.model) == []
    assert not prepared.notes
    first, second = prepared.model.conv
    assert isinstance(first.padding, tuple)
    assert isinstance(second.padding, tuple)
    assert second.bias is not None
    # The first factor of a Linear is as the plan fitted it.
    assert torch.equal(prepared.model.wide[0].weight, result.model.wide[0].weight)


class Residual(nn.Module):
    """torchvision's block: one ReLU called twice, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


def test_norms_of_a_residual_block_are_folded() -> None:
    prepared = checked(settled(Residual()), images())
    assert norms_in(prepared.model) == []
    assert not prepared.notes


class Dense(nn.Module):
    """torchvision's DenseNet layers: norms in front, over everything so far."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.norm3, self.conv3 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.conv0(x)).relu()
        y = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return self.conv3(self.norm3(torch.cat([x, y], 1)).relu())


def test_norms_in_front_of_layers_and_over_a_concatenation_stay() -> None:
    prepared = checked(settled(Dense()), images())
    assert norms_in(prepared.model) == ["norm1", "norm3"]
    assert prepared.notes == (
        "not folded: 'norm1', 'norm3'; the input is not the output of one layer, unchanged",
    )


def conv(groups: int = 1) -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1, groups=groups)


def tied() -> Net:
    net = Net(
        lambda net, x: net.norm(net.conv(x)) + net.other(x), conv=conv(), other=conv(), norm=nn.BatchNorm2d(4)
    )
    net.other.weight = net.conv.weight
    return net


def hooked(where: str) -> Net:
    net = Net(lambda net, x: net.norm(net.conv(x)), conv=conv(), norm=nn.BatchNorm2d(4))
    if where == "conv":
        net.conv.register_forward_hook(lambda _module, _args, y: 2 * y)
    else:
        net.norm.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    return net


class Standardised(nn.Conv2d):
    """A weight that the forward itself computes."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


# Networks with a norm that must stay, and the reason.
STAYS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "layer called twice, norm once": (
        lambda: Net(lambda net, x: net.norm(net.conv(net.conv(x))), conv=conv(), norm=nn.BatchNorm2d(4)),
        "the layer before is not called once for each call",
    ),
    "norm read by two layers": (
        lambda: Net(
            lambda net, x: net.norm(net.a(x)) + net.norm(net.b(x)), a=conv(), b=conv(), norm=nn.BatchNorm2d(4)
        ),
        "the inputs come from several layers",
    ),
    "layer's output added elsewhere": (
        lambda: Net(lambda net, x: (y := net.conv(x)) + net.norm(y), conv=conv(), norm=nn.BatchNorm2d(4)),
        "the output of the layer before is also read elsewhere",
    ),
    "layer's output returned as well": (
        lambda: Net(lambda net, x: [y := net.conv(x), net.norm(y)], conv=conv(), norm=nn.BatchNorm2d(4)),
        "the output of the layer before is also read elsewhere",
    ),
    "one output read by two norms": (
        lambda: Net(
            lambda net, x: net.norm(y := net.conv(x)) * net.second(y),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
            second=nn.BatchNorm2d(4),
        ),
        "the output of the layer before is also read elsewhere",
    ),
    "one output read twice by one norm": (
        lambda: Net(
            lambda net, x: net.norm(y := net.conv(x)) * net.norm(y), conv=conv(), norm=nn.BatchNorm2d(4)
        ),
        "the layer before is not called once for each call",
    ),
    "changed in place": (
        lambda: Net(lambda net, x: net.norm(net.conv(x).mul_(2)), conv=conv(), norm=nn.BatchNorm2d(4)),
        "the input is not the output of one layer, unchanged",
    ),
    "weight read elsewhere": (
        lambda: Net(
            lambda net, x: net.norm(net.conv(x)) + functional.conv2d(x, net.conv.weight, padding=1),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
        ),
        "weights are also read elsewhere",
    ),
    "weight shared with another layer": (tied, "the layer before shares its weights"),
    "hook on the layer": (lambda: hooked("conv"), "the Conv2d before has hooks or a forward of its own"),
    "hook on the norm": (lambda: hooked("norm"), "BatchNorm2d has hooks or a forward of its own"),
    "layer with a forward of its own": (
        lambda: Net(lambda net, x: net.norm(net.conv(x)), conv=Standardised(4, 4, 3), norm=nn.BatchNorm2d(4)),
        "the Standardised before has hooks or a forward of its own",
    ),
    "norm with a forward of its own": (
        lambda: Net(lambda net, x: net.norm(net.conv(x)), conv=conv(), norm=NormAct(4)),
        "NormAct has hooks or a forward of its own",
    ),
    "without running statistics": (
        lambda: Net(
            lambda net, x: net.norm(net.conv(x)),
            conv=conv(),
            norm=nn.BatchNorm2d(4, track_running_stats=False),
        ),
        "it keeps no running statistics",
    ),
    "never called": (
        lambda: Net(lambda net, x: net.conv(x), conv=conv(), norm=nn.BatchNorm2d(4)),
        "the forward does not call it",
    ),
    "read by the parent": (
        lambda: Net(lambda net, x: net.norm(net.conv(x)) * net.norm.eps, conv=conv(), norm=nn.BatchNorm2d(4)),
        "the model fails without it .*no attribute 'eps'",
    ),
    "channels of a Linear stand last": (
        lambda: Net(
            lambda net, x: net.norm(net.fc(x.flatten(2))), fc=nn.Linear(36, 4), norm=nn.BatchNorm1d(4)
        ),
        "the norm's channels are not those of the layer before",
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_norm_stays_where_folding_is_not_certain(case: str) -> None:
    make, reason = STAYS[case]
    prepared = checked(settled(make()), images())
    assert any(name.endswith("norm") for name in norms_in(prepared.model))
    (note,) = prepared.notes
    assert note.startswith("not folded: 'norm'")
    assert re.search(reason, note)


def test_layer_and_norm_called_in_pairs_are_folded() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.norm(net.conv(net.norm(net.conv(x)).relu()))

    net = settled(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
    prepared = checked(net, images())
    assert norms_in(prepared.model) == []
    assert not prepared.notes


def test_model_without_norms_keeps_its_values() -> None:
    model = settled(named(a=nn.Conv2d(4, 6, 3, padding=1), relu=nn.ReLU(), b=nn.Conv2d(6, 3, 1)))
    prepared = checked(model, images())
    assert not prepared.notes
    assert prepared.model.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in prepared.model.state_dict().items()
    )


def test_a_change_that_fails_is_undone_and_the_others_stay() -> None:
    # The forward looks at what the norm is, which no tensor shows.
    modules = {"a": conv(), "n1": nn.BatchNorm2d(4), "b": conv(), "n2": nn.BatchNorm2d(4)}
    late = Net(
        lambda net, x: net.n2(net.b(net.n1(net.a(x)).relu())) * (1 + isinstance(net.n1, nn.Identity)),
        **modules,
    )
    model = settled(late)
    weight = model.a.weight.clone()
    prepared = checked(model, images())
    assert norms_in(prepared.model) == ["n1"]
    assert torch.equal(prepared.model.a.weight, weight)
    assert prepared.notes == ("not folded: 'n1'; output 'output' would differ by 1.0e+00, more than 1.0e-05",)


# Padding ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("make", "shape", "padding"),
    [
        (lambda: nn.Conv1d(4, 5, 5, padding="same", dilation=2), (4, 9), (4,)),
        (lambda: nn.Conv2d(4, 5, (3, 1), padding="same"), (4, 6, 6), (1, 0)),
        (lambda: nn.Conv2d(4, 5, 3, 2, padding="valid"), (4, 6, 6), (0, 0)),
        (lambda: nn.Conv2d(4, 6, 2, padding="same", dilation=2, groups=2), (4, 6, 6), (1, 1)),
        (lambda: nn.Conv3d(4, 5, 3, padding="same"), (4, 4, 4, 4), (1, 1, 1)),
    ],
)
def test_padding_in_words_becomes_numbers(
    make: Callable[[], nn.Module], shape: tuple[int, ...], padding: tuple[int, ...]
) -> None:
    prepared = checked(settled(named(conv=make(), relu=nn.ReLU())), images(shape=shape), 1e-6)
    assert prepared.model.conv.padding == padding
    assert not prepared.notes


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("make", "shape", "pads"),
    [
        (lambda: nn.Conv1d(4, 4, 4, padding="same"), (4, 9), (1, 2)),
        (lambda: nn.Conv2d(4, 4, (2, 3), padding="same"), (4, 6, 6), (1, 1, 0, 1)),
        (lambda: nn.Conv2d(4, 4, (3, 4), padding="same", dilation=3), (4, 6, 6), (4, 5, 3, 3)),
        (lambda: nn.Conv3d(4, 4, (2, 1, 4), padding="same"), (4, 4, 4, 4), (1, 2, 0, 0, 0, 1)),
    ],
)
def test_uneven_padding_becomes_zeros_in_front(
    make: Callable[[], nn.Module], shape: tuple[int, ...], pads: tuple[int, ...]
) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)](4)
    prepared = checked(settled(named(conv=make(), norm=norm)), images(shape=shape))
    pad, conv_alone = prepared.model.conv
    assert tuple(pad.padding) == pads
    assert set(conv_alone.padding) == {0}
    # The norm finds its layer there all the same.
    assert not norms_in(prepared.model)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_that_cannot_be_written_so_stays() -> None:
    reflected = settled(named(conv=nn.Conv2d(4, 5, 3, padding="same", padding_mode="reflect")))
    prepared = checked(reflected, images())
    assert prepared.notes == ("padding not in numbers: 'conv'; it pads by 'reflect'",)
    assert prepared.model.conv.padding == "same"
    # The whole model: nothing can stand in front of it.
    alone = settled(nn.Conv2d(4, 5, 2, padding="same"))
    prepared = checked(alone, images())
    assert prepared.model.padding == "same"
    assert prepared.notes == (
        "padding not in numbers: ''; output 'output' would be torch.float32 [3, 5, 5, 5]",
    )
    hooked_conv = settled(named(conv=nn.Conv2d(4, 5, 2, padding="same")))
    hooked_conv.conv.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    prepared = checked(hooked_conv, images())
    assert prepared.notes == ("padding not in numbers: 'conv'; it has hooks or a forward of its own",)


# Weights that are computed ------------------------------------------------------------------------


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize(
    "computed",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        old_weight_norm,
        spectral_norm,
        pruned,
    ],
)
def test_computed_weights_become_plain(computed: Callable[[nn.Module], nn.Module]) -> None:
    model = settled(named(a=nn.Linear(4, 6), relu=nn.ReLU(), b=nn.Linear(6, 6), norm=nn.BatchNorm1d(6)))
    model.b = computed(model.b)
    model.eval()
    x = images(shape=(4,))
    with torch.no_grad():
        before = model(x)
    prepared = checked(model, x)
    assert type(prepared.model.b) is nn.Linear
    assert dict(prepared.model.b.named_parameters()).keys() == {"weight", "bias"}
    assert not list(prepared.model.b.named_buffers())
    assert not prepared.model.b._forward_pre_hooks
    assert not norms_in(prepared.model)
    assert not prepared.notes
    # What computes the weight of the caller's model still does.
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_computed_weights_that_the_model_asks_for_stay() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(x) * net.b.parametrizations.weight.original0.sum()

    model = Net(forward, b=settled(nn.Linear(4, 6)))
    parametrizations.weight_norm(model.b)
    prepared = checked(model.eval(), images(shape=(4,)))
    assert type(prepared.model.b).__name__ == "ParametrizedLinear"
    (note,) = prepared.notes
    assert note.startswith("weights still computed: 'b'; the model fails without it (AttributeError(")


# The caller's model -------------------------------------------------------------------------------


def state_of(model: nn.Module) -> object:
    modules = [
        (name, id(module), type(module), module.training, {k: id(v) for k, v in vars(module).items()})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tables = [
        [
            (key, id(value))
            for table in vars(module).values()
            if isinstance(table, dict)
            for key, value in table.items()
        ]
        for module in model.modules()
    ]
    tensors = [
        (name, tensor.device, tensor.requires_grad, tensor.grad is None, tensor.tolist())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    return modules, tables, tensors


def test_the_callers_model_and_data_are_not_changed() -> None:
    model = settled(
        named(
            conv=nn.Conv2d(4, 6, 3, padding="same"),
            norm=nn.BatchNorm2d(6),
            drop=nn.Dropout(),
            flat=nn.Flatten(),
            head=parametrizations.weight_norm(nn.Linear(216, 5)),
        )
    )
    model.conv.config = SimpleNamespace(use_cache=True)
    model.train()
    model.norm.eval()
    model.flat.register_forward_hook(lambda _module, _args, y: y)
    model.conv.bias.requires_grad_(False)
    x = images()
    seen, state = x.clone(), torch.get_rng_state()
    before = state_of(model)
    prepared = prepare(model, as_batch(x))
    assert state_of(model) == before
    assert torch.equal(x, seen)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.conv.config.use_cache
    assert not prepared.model.conv.config.use_cache
    assert not any(module.training for module in prepared.model.modules())
    mine = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in mine for p in prepared.model.parameters())


def test_inference_mode_around_it_does_no_harm() -> None:
    model = settled(named(layer=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    with torch.inference_mode():
        prepared = checked(model, images())
    assert norms_in(prepared.model) == []
    assert not prepared.model.layer.weight.is_inference()


# Outputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"label": 3, "name": "cat"}, "Net returns a dict with 'label', 'name' that holds no tensor.*wrap"),
        (None, "Net returns a NoneType that holds no tensor"),
    ],
)
def test_a_model_without_tensors_among_its_outputs_is_refused(result: object, told: str) -> None:
    with pytest.raises(sr.OutputError, match=told):
        prepare(Net(lambda _net, _x: result), as_batch(images()))


def test_outputs_that_hold_no_tensor_are_told() -> None:
    prepared = prepare(Net(lambda _net, x: {"y": x, "n": 3, "none": None}), as_batch(images()))
    assert prepared.outputs == ("y",)
    assert prepared.notes == ("outputs left out, since they hold no tensors or a cache: 'n'",)


def test_a_batch_that_the_model_refuses_is_an_error() -> None:
    with pytest.raises(sr.BatchesError, match="refuses"):
        prepare(nn.Linear(4, 5), as_batch(torch.ones(2, 3)))


def test_outputs_at_random_are_drawn_alike_before_and_after() -> None:
    model = settled(
        Net(lambda net, x: functional.dropout(net.norm(net.conv(x))), conv=conv(), norm=nn.BatchNorm2d(4))
    )
    prepared = prepare(model, as_batch(images()))
    assert norms_in(prepared.model) == []
    assert not prepared.notes


def test_a_model_that_counts_its_calls_is_left_as_it_is() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        net.calls = getattr(net, "calls", 0) + 1
        return net.norm(net.conv(x)) * net.calls

    model = settled(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
    prepared = prepare(model, as_batch(images()))
    assert norms_in(prepared.model) == ["norm"]
    (note,) = prepared.notes
    assert "two forwards of the model differ" in note
    assert not hasattr(model, "calls")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_compared_where_they_are(value: float) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.norm(net.conv(x)).masked_fill(x > 1, value)

    model = settled(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
    assert norms_in(prepare(model, as_batch(images())).model) == []


def test_integer_outputs_must_be_equal() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.norm(net.conv(x)).mean((2, 3)).argmax(1)
        return y + int(isinstance(net.norm, nn.Identity)) * net.late

    for late in (0, 1):
        model = settled(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
        model.late = late
        prepared = prepare(model, as_batch(images()))
        assert norms_in(prepared.model) == ["norm"] * late
        assert [("would differ" in note) for note in prepared.notes] == [True] * late
