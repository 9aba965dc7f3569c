# SPDX-License-Identifier: Apache-2.0
"""AIMET's compression calls: names, callbacks, schemes and modes, and scripts with other import lines."""

import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank import aimet
from slimrank.forward import as_batch

Snapshot = Callable[[nn.Module], object]
# Modules of AIMET's wheel from which scripts import, old and new.
_IMPORTS = (
    "aimet_torch.compress",
    "aimet_torch.defs",
    "aimet_torch.common.defs",
    "aimet_common.defs",
)


class Net(nn.Module):
    """A stem, a residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv3 = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = x + self.conv3(self.conv2(x).relu())
        return self.fc2(self.fc1(x.mean((2, 3))).relu())


def _images(n: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Task:
    """A model, its images, and a score: how close its outputs are to those of the model before."""

    def __init__(self, nets: ModuleType) -> None:
        self.model: Net = nets.settle(Net()).train()
        self.images = _images().split(16)
        with torch.no_grad():
            self.wanted = [self.model(x) for x in self.images]
        self.calls: list[tuple[tuple[object, ...], bool]] = []

    @property
    def loader(self) -> list[tuple[Tensor, Tensor]]:
        return [(x, y.argmax(1)) for x, y in zip(self.images, self.wanted, strict=True)]

    def evaluate(self, model: nn.Module, iterations: int | None, use_cuda: bool) -> float:
        self.calls.append(((iterations, use_cuda), model.training))
        errors = []
        with torch.no_grad():
            for x, y in list(zip(self.images, self.wanted, strict=True))[:iterations]:
                errors.append(float((model(x) - y).square().mean() / y.square().mean()))
        # Scripts often leave it so.
        model.train()
        return 1 - sum(errors) / len(errors)

    def parameters(
        self,
        scheme: aimet.CompressionScheme,
        mode: str,
        *,
        ignored: Sequence[nn.Module] | None = None,
        pairs: Sequence[tuple[nn.Module, object]] | None = None,
        multiplicity: object = 1,
        **greedy: object,
    ) -> aimet.SpatialSvdParameters | aimet.WeightSvdParameters | aimet.ChannelPruningParameters:
        kind = {
            "weight_svd": aimet.WeightSvdParameters,
            "spatial_svd": aimet.SpatialSvdParameters,
            "channel_pruning": aimet.ChannelPruningParameters,
        }[scheme.name]
        extra: dict[str, object] = {}
        if kind is aimet.ChannelPruningParameters:
            extra = {
                "data_loader": self.loader,
                "num_reconstruction_samples": 500,
                "allow_custom_downsample_ops": False,
            }
        if mode == "manual":
            if pairs is None:
                pairs = [(self.model.conv2, Decimal("0.5")), (self.model.conv3, 0.4)]
            params = kind.ManualModeParams([aimet.ModuleCompRatioPair(*pair) for pair in pairs])
        else:
            asked = {"target_comp_ratio": Decimal("0.7"), "num_comp_ratio_candidates": 4} | greedy
            select = aimet.GreedySelectionParameters(**asked)
            first = [aimet.RankSelectScheme.greedy] if kind is aimet.WeightSvdParameters else []
            params = kind.AutoModeParams(*first, select, modules_to_ignore=ignored)
        return kind(mode=kind.Mode[mode], params=params, multiplicity=multiplicity, **extra)

    def compress(
        self,
        scheme: aimet.CompressionScheme,
        parameters: object,
        *,
        metric: aimet.CostMetric = aimet.CostMetric.mac,
        **options: object,
    ) -> tuple[nn.Module, aimet.CompressionStats]:
        return aimet.ModelCompressor.compress_model(
            self.model, self.evaluate, 1, (1, 3, 8, 8), scheme, metric, parameters, **options
        )


@pytest.fixture
def task(nets: ModuleType) -> Task:
    return Task(nets)


SCHEMES = list(aimet.CompressionScheme)
SVD = [aimet.CompressionScheme.weight_svd, aimet.CompressionScheme.spatial_svd]
PRUNING = aimet.CompressionScheme.channel_pruning
SPATIAL = aimet.CompressionScheme.spatial_svd
WEIGHT = aimet.CompressionScheme.weight_svd


# --- Names ---


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        (
            aimet.ModelCompressor.compress_model,
            "model, eval_callback, eval_iterations, input_shape, compress_scheme, cost_metric, parameters, "
            "trainer=None, visualization_url=None",
        ),
        (
            aimet.GreedySelectionParameters,
            "target_comp_ratio, num_comp_ratio_candidates=10, use_monotonic_fit=False, "
            "saved_eval_scores_dict=None",
        ),
        (aimet.ModuleCompRatioPair, "module, comp_ratio"),
        (aimet.SpatialSvdParameters, "mode, params, multiplicity=1"),
        (aimet.WeightSvdParameters, "mode, params, multiplicity=1"),
        (
            aimet.ChannelPruningParameters,
            "data_loader, num_reconstruction_samples, allow_custom_downsample_ops, mode, params, "
            "multiplicity=1",
        ),
        (aimet.SpatialSvdParameters.ManualModeParams, "list_of_module_comp_ratio_pairs"),
        (aimet.WeightSvdParameters.ManualModeParams, "list_of_module_comp_ratio_pairs"),
        (aimet.ChannelPruningParameters.ManualModeParams, "list_of_module_comp_ratio_pairs"),
        (aimet.SpatialSvdParameters.AutoModeParams, "greedy_select_params, modules_to_ignore=None"),
        (aimet.ChannelPruningParameters.AutoModeParams, "greedy_select_params, modules_to_ignore=None"),
        (
            aimet.WeightSvdParameters.AutoModeParams,
            "rank_select_scheme, select_params, modules_to_ignore=None",
        ),
        (aimet.CompressionStats.LayerStats, "name, comp_ratio"),
        (aimet.GreedyCompressionRatioSelectionStats, "eval_scores_dict"),
    ],
)
def test_orders_and_defaults_are_aimets(call: Callable[..., object], parameters: str) -> None:
    given = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(call).parameters.values()
    ]
    assert ", ".join(given) == parameters
    kinds = {p.kind for p in inspect.signature(call).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_attributes_are_aimets(task: Task) -> None:
    manual = aimet.SpatialSvdParameters.ManualModeParams([aimet.ModuleCompRatioPair(task.model.conv2, 0.5)])
    greedy = aimet.GreedySelectionParameters(0.5)
    auto = aimet.SpatialSvdParameters.AutoModeParams(greedy)
    weight = aimet.WeightSvdParameters.AutoModeParams(aimet.RankSelectScheme.greedy, greedy)
    mode = aimet.ChannelPruningParameters.Mode.manual
    pruning = aimet.ChannelPruningParameters(task.loader, 500, False, mode, manual)
    found = {
        "ModuleCompRatioPair": vars(manual.list_of_module_comp_ratio_pairs[0]),
        "ManualModeParams": vars(manual),
        "AutoModeParams": vars(auto),
        "AutoModeParams of weight SVD": vars(weight),
        "GreedySelectionParameters": vars(greedy),
        "SpatialSvdParameters": vars(aimet.SpatialSvdParameters(mode, manual)),
        "WeightSvdParameters": vars(aimet.WeightSvdParameters(mode, manual)),
        "ChannelPruningParameters": vars(pruning),
    }
    # As the objects of AIMET 2.42 have them.
    svd = "mode, mode_params, multiplicity"
    assert {name: ", ".join(values) for name, values in found.items()} == {
        "ModuleCompRatioPair": "module, comp_ratio",
        "ManualModeParams": "list_of_module_comp_ratio_pairs",
        "AutoModeParams": "greedy_params, modules_to_ignore",
        "AutoModeParams of weight SVD": "rank_select_scheme, select_params, modules_to_ignore",
        "GreedySelectionParameters": "target_comp_ratio, num_comp_ratio_candidates, use_monotonic_fit, "
        "saved_eval_scores_dict",
        "SpatialSvdParameters": svd,
        "WeightSvdParameters": svd,
        "ChannelPruningParameters": "data_loader, num_reconstruction_samples, allow_custom_downsample_ops, "
        f"{svd}",
    }


@pytest.mark.slow
def test_statistics_have_the_attributes_and_types_of_aimets(task: Task) -> None:
    _, automatic = task.compress(SPATIAL, task.parameters(SPATIAL, "auto"))
    _, manual = task.compress(SPATIAL, task.parameters(SPATIAL, "manual"))
    for statistics in (automatic, manual):
        told = {
            name: value
            for name, value in vars(statistics).items()
            if name not in ("notes", "result", "scores")
        }
        assert {name: type(value) for name, value in told.items()} == {
            "baseline_model_accuracy": str,
            "compressed_model_accuracy": str,
            "memory_compression_ratio": str,
            "mac_compression_ratio": str,
            "per_layer_stats": list,
            "compression_ratio_selection_stats": type(statistics.compression_ratio_selection_stats),
        }
        for text in list(told.values())[:4]:
            assert re.fullmatch(r"-?\d+\.\d{6}", str(text))
        for layer in statistics.per_layer_stats:
            assert list(vars(layer)) == ["name", "compression_ratio"]
            assert layer.compression_ratio is None or isinstance(layer.compression_ratio, Decimal)
    assert manual.compression_ratio_selection_stats is None
    chosen = automatic.compression_ratio_selection_stats
    assert list(vars(chosen)) == ["eval_scores_dictionary"]
    for scores in chosen.eval_scores_dictionary.values():
        assert {(type(ratio), type(score)) for ratio, score in scores.items()} == {(Decimal, float)}


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        (aimet.CompressionScheme, {"weight_svd": 1, "spatial_svd": 2, "channel_pruning": 3}),
        (aimet.CostMetric, {"mac": 1, "memory": 2}),
        (aimet.RankSelectScheme, {"greedy": 1}),
        (aimet.SpatialSvdParameters.Mode, {"manual": 1, "auto": 2}),
        (aimet.WeightSvdParameters.Mode, {"manual": 1, "auto": 2}),
        (aimet.ChannelPruningParameters.Mode, {"manual": 1, "auto": 2}),
    ],
)
def test_members_are_aimets(kind: type, members: dict[str, int]) -> None:
    assert {member.name: member.value for member in kind} == members


# --- Schemes and modes ---


@pytest.mark.parametrize("metric", list(aimet.CostMetric))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_automatic_mode(
    scheme: aimet.CompressionScheme, metric: aimet.CostMetric, task: Task, snapshot: Snapshot
) -> None:
    before = snapshot(task.model)
    parameters = task.parameters(scheme, "auto", ignored=[task.model.conv1])
    model, statistics = task.compress(scheme, parameters, metric=metric)
    assert snapshot(task.model) == before
    assert task.model.training
    assert not model.training
    n_params = [sum(p.numel() for p in net.parameters()) for net in (model, task.model)]
    assert statistics.memory_compression_ratio == f"{n_params[0] / n_params[1]:.6f}"
    reached = {
        aimet.CostMetric.mac: statistics.mac_compression_ratio,
        aimet.CostMetric.memory: statistics.memory_compression_ratio,
    }[metric]
    assert 0.4 < float(reached) <= 0.7
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.conv1.in_channels == 3
    assert float(statistics.baseline_model_accuracy) == 1
    assert float(statistics.compressed_model_accuracy) < 1
    layers = {layer.name: layer.compression_ratio for layer in statistics.per_layer_stats}
    assert "conv1" not in layers
    assert {"conv2", "conv3"} <= layers.keys()
    compressed = [ratio for ratio in layers.values() if ratio is not None]
    assert compressed
    assert all(isinstance(ratio, Decimal) and 0 < ratio < 1 for ratio in compressed)
    table = statistics.compression_ratio_selection_stats.eval_scores_dictionary
    assert table.keys() == layers.keys()
    assert all(0 < ratio < 1 and score <= 1 for scores in table.values() for ratio, score in scores.items())
    text = str(statistics)
    assert all(name in text for name in layers)
    assert statistics.mac_compression_ratio in text
    # The baseline, one for the untouched model in the table, the candidates, the compressed model.
    evaluations = [call for call, _ in task.calls]
    assert evaluations[0] == evaluations[-1] == (None, False)
    n_scores = sum(map(len, (*statistics.scores.entries.values(), *statistics.scores.groups.values())))
    assert evaluations[1:-1] == [(1, False)] * (n_scores + 1)
    assert not any(is_training for _, is_training in task.calls)


@pytest.mark.parametrize("metric", list(aimet.CostMetric))
@pytest.mark.parametrize("scheme", SVD)
def test_manual_ratios_of_pairs_are_the_largest_ranks_within(
    scheme: aimet.CompressionScheme, metric: aimet.CostMetric, task: Task
) -> None:
    model, statistics = task.compress(scheme, task.parameters(scheme, "manual"), metric=metric)
    costs = {}
    for name, asked in (("conv2", 0.5), ("conv3", 0.4)):
        layer, pair = task.model.get_submodule(name), model.get_submodule(name)
        assert isinstance(pair, nn.Sequential)
        rank = pair[0].out_channels
        if metric is aimet.CostMetric.mac:
            # Every convolution here has stride 1 and keeps the size, so weights count positions alike.
            whole = layer.weight.numel()
            costs[name] = sum(part.weight.numel() for part in pair) / whole
            per_rank = sum(part.weight.numel() for part in pair) / rank / whole
        else:
            whole = sum(p.numel() for p in layer.parameters())
            costs[name] = sum(p.numel() for p in pair.parameters()) / whole
            per_rank = sum(part.weight.numel() for part in pair) / rank / whole
        assert asked - per_rank < costs[name] <= asked
    reached = {layer.name: layer.compression_ratio for layer in statistics.per_layer_stats}
    assert reached == {name: Decimal(f"{cost:.6f}") for name, cost in costs.items()}
    assert statistics.compression_ratio_selection_stats is None
    assert "None" not in str(statistics)
    assert [call for call, _ in task.calls] == [(None, False)] * 2


def test_spatial_svd_takes_aimets_rank(task: Task) -> None:
    model, _ = task.compress(SPATIAL, task.parameters(SPATIAL, "manual"))
    # 24 * 16 * 9 * 0.5 / (16 * 3 + 24 * 3) = 14.4
    assert model.conv2[0].out_channels == 14


def test_manual_ratios_of_channels_are_shares_of_inputs(task: Task) -> None:
    pairs = [(task.model.conv3, Fraction(1, 2)), (task.model.fc2, np.float32(0.7))]
    model, statistics = task.compress(PRUNING, task.parameters(PRUNING, "manual", pairs=pairs))
    assert (model.conv3.in_channels, model.conv2.out_channels) == (12, 12)
    # 0.7 of 32 is 22.4.
    assert (model.fc2.in_features, model.fc1.out_features) == (22, 22)
    reached = {layer.name: layer.compression_ratio for layer in statistics.per_layer_stats}
    assert reached == {"conv3": Decimal("0.5"), "fc2": Decimal("0.6875")}


@pytest.mark.slow
def test_layers_that_read_the_same_channels_lose_them_together(task: Task) -> None:
    pairs = [(task.model.conv2, 0.5)]
    model, statistics = task.compress(PRUNING, task.parameters(PRUNING, "manual", pairs=pairs))
    assert (model.conv2.in_channels, model.fc1.in_features, model.conv3.out_channels) == (8, 8, 8)
    assert any(note.startswith("'conv2': 'fc1' reads the same channels") for note in statistics.notes)
    # Of two ratios the one that keeps more counts, since a channel goes only where both let it go.
    pairs = [(task.model.conv2, 0.5), (task.model.fc1, 0.75)]
    model, _ = task.compress(PRUNING, task.parameters(PRUNING, "manual", pairs=pairs))
    assert model.conv2.in_channels == 12
    pairs = [(task.model.conv2, 0.5), (task.model.fc1, 1.0)]
    model, statistics = task.compress(PRUNING, task.parameters(PRUNING, "manual", pairs=pairs))
    assert model.conv2.in_channels == 16
    assert [layer.compression_ratio for layer in statistics.per_layer_stats] == [None, None]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_multiplicity_holds(scheme: aimet.CompressionScheme, mode: str, task: Task) -> None:
    parameters = task.parameters(scheme, mode, multiplicity=Decimal(8), target_comp_ratio=0.8)
    _, statistics = task.compress(scheme, parameters)
    plan = statistics.result.plan
    sizes = [setting.rank for setting in plan.settings.values()]
    sizes += [len(kept) for kept in plan.groups.values()]
    assert sizes
    assert all(size % 8 == 0 for size in sizes)


def test_a_ratio_below_rank_one_takes_rank_one(task: Task) -> None:
    pairs = [(task.model.conv2, 0.001)]
    model, statistics = task.compress(WEIGHT, task.parameters(WEIGHT, "manual", pairs=pairs))
    assert model.conv2[0].out_channels == 1
    assert any("conv2: ratio 0.001 is below" in note for note in statistics.notes)


def test_a_ratio_of_one_leaves_the_layer_alone(task: Task) -> None:
    pairs = [(task.model.conv2, 1.0)]
    model, statistics = task.compress(SPATIAL, task.parameters(SPATIAL, "manual", pairs=pairs))
    assert statistics.mac_compression_ratio == "1.000000"
    torch.testing.assert_close(model.conv2.weight, task.model.conv2.weight)


def test_ignored_modules_may_be_containers(nets: ModuleType, task: Task) -> None:
    task.model.body = nn.ModuleList([task.model.conv2])
    parameters = task.parameters(
        WEIGHT, "auto", ignored=(task.model.conv1, task.model.body), target_comp_ratio=0.8
    )
    _, statistics = task.compress(WEIGHT, parameters)
    names = {layer.name for layer in statistics.per_layer_stats}
    assert "conv3" in names
    assert "conv1" not in names


def test_a_ignored_reader_keeps_its_channels(task: Task) -> None:
    parameters = task.parameters(PRUNING, "auto", ignored=[task.model.conv3], target_comp_ratio=0.9)
    model, statistics = task.compress(PRUNING, parameters)
    assert model.conv3.in_channels == 24
    assert "conv3" not in {layer.name for layer in statistics.per_layer_stats}
    assert "conv2" not in statistics.scores.groups


# --- Callbacks ---


class Trainer:
    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, object, object]] = []

    def train_model(self, model: nn.Module, layer: object, train_flag: bool = True) -> None:
        self.calls.append((model, layer, train_flag))
        if train_flag:
            assert model.get_submodule(layer.name) is layer.module
            with torch.enable_grad():
                model(_images(4)).square().mean().backward()
            assert all(p.grad is not None for p in layer.module.parameters())
            model.zero_grad()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_trainer_is_told_each_compressed_layer(
    scheme: aimet.CompressionScheme, task: Task, snapshot: Snapshot
) -> None:
    before = snapshot(task.model)
    trainer = Trainer()
    model, _ = task.compress(scheme, task.parameters(scheme, "manual"), trainer=trainer)
    assert snapshot(task.model) == before
    start, *layers = trainer.calls
    assert start[0] is start[1]
    assert start[0] is not task.model
    assert start[2] is False
    names = [layer.name for _, layer, _ in layers]
    # Input channels of conv2 are also those of fc1, which is fitted anew as well.
    assert names == (["conv2", "conv3", "fc1"] if scheme is PRUNING else ["conv2", "conv3"])
    assert all(built is model and flag is True for built, _, flag in layers)
    assert layers[0][1].weight_shape == (24, 16, 3, 3)
    assert layers[0][1].output_shape == (1, 24, 8, 8)
    for _, layer, _ in layers:
        assert getattr(layer.parent_module, layer.var_name_of_module_in_parent) is layer.module
        assert layer.input_shape is None
        assert layer.picked_for_compression is True


def test_scores_may_be_any_number(task: Task) -> None:
    for kind in (Decimal, np.float32, torch.tensor):
        accuracy = lambda model, iterations, use_cuda, kind=kind: kind(  # noqa: E731
            task.evaluate(model, iterations, use_cuda)
        )
        parameters = task.parameters(SPATIAL, "manual")
        _, statistics = aimet.ModelCompressor.compress_model(
            task.model, accuracy, None, (1, 3, 8, 8), SPATIAL, aimet.CostMetric.mac, parameters
        )
        assert statistics.baseline_model_accuracy == "1.000000"


def test_the_address_of_a_server_is_accepted(task: Task) -> None:
    _, statistics = task.compress(
        SPATIAL, task.parameters(SPATIAL, "manual"), visualization_url="http://localhost:5006"
    )
    assert any(note.startswith("visualization_url: nothing is sent there") for note in statistics.notes)


# --- Inputs ---


def test_inputs_are_those_that_the_callback_runs(task: Task) -> None:
    _, statistics = task.compress(SPATIAL, task.parameters(SPATIAL, "manual"))
    assert any("fitted to 64 of 64 samples that eval_callback ran" in note for note in statistics.notes)
    assert statistics.result.divergence is not None
    fits = {layer.name: layer.fit for layer in statistics.result.layers if layer.setting}
    assert set(fits.values()) <= {"sequential", "independent"}


@pytest.mark.parametrize("scheme", SVD)
@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_without_a_forward_the_statistics_warn(
    scheme: aimet.CompressionScheme, mode: str, task: Task
) -> None:
    def by_weights(model: nn.Module, iterations: int | None, use_cuda: bool) -> float:
        return -sum(float(p.detach().square().sum()) for p in model.parameters())

    _, statistics = aimet.ModelCompressor.compress_model(
        task.model,
        by_weights,
        None,
        (1, 3, 8, 8),
        scheme,
        aimet.CostMetric.mac,
        task.parameters(scheme, mode),
    )
    assert any(note.startswith("warning: eval_callback never called the model") for note in statistics.notes)
    assert "warning: eval_callback never" in str(statistics)
    assert {layer.fit for layer in statistics.result.layers if layer.setting} == {"weights"}


def test_inputs_may_be_names_and_of_inference_mode() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 12, generator=generator), torch.randn(20, 24, generator=generator)
    model = Two()

    @torch.inference_mode()
    def evaluate(net: nn.Module, iterations: int | None, use_cuda: bool) -> float:
        for part in range(0, 20, 5):
            net(x[part : part + 5] * 1, y=y[part : part + 5], scale=2.0)
        return 1.0

    parameters = aimet.WeightSvdParameters(
        aimet.WeightSvdParameters.Mode.manual,
        aimet.WeightSvdParameters.ManualModeParams([aimet.ModuleCompRatioPair(model.a, 0.5)]),
    )
    _, statistics = aimet.ModelCompressor.compress_model(
        model, evaluate, None, [(1, 12), (1, 24)], WEIGHT, aimet.CostMetric.mac, parameters
    )
    assert any("20 of 20 samples" in note for note in statistics.notes)
    assert not any(note.startswith("input_shape") for note in statistics.notes)


def test_another_shape_than_input_shape_is_told(task: Task) -> None:
    _, statistics = aimet.ModelCompressor.compress_model(
        task.model,
        task.evaluate,
        None,
        (1, 3, 16, 16),
        SPATIAL,
        aimet.CostMetric.mac,
        task.parameters(SPATIAL, "manual"),
    )
    assert any(
        note.startswith("input_shape: without batch it is ((3, 16, 16),)") for note in statistics.notes
    )


def _loaders(images: Sequence[Tensor]) -> dict[str, object]:
    labels = [torch.zeros(len(x)) for x in images]
    return {
        "pairs": list(zip(images, labels, strict=True)),
        "lists": [[x, y] for x, y in zip(images, labels, strict=True)],
        "inputs": list(images),
        "tuples of one": [(x,) for x in images],
        "names": [{"x": x} for x in images],
        "input in a list": [([x], y) for x, y in zip(images, labels, strict=True)],
        "once": ((x, y) for x, y in zip(images, labels, strict=True)),
        "shuffled": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat(list(images)), torch.cat(labels)),
            batch_size=16,
            shuffle=True,
        ),
    }


@pytest.mark.parametrize("kind", list(_loaders(_images(4).split(2))))
def test_data_loaders_of_many_kinds(kind: str, task: Task) -> None:
    parameters = task.parameters(PRUNING, "manual")
    parameters.data_loader = _loaders(task.images)[kind]
    _, statistics = task.compress(PRUNING, parameters)
    assert any("fitted to 64 samples of data_loader" in note for note in statistics.notes)


class Two(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.b((self.a(x) + y.mean()).relu()) * scale


@pytest.mark.parametrize(
    "item",
    [
        lambda x, y, label: (x, y),
        lambda x, y, label: ((x, y), label),
        lambda x, y, label: [x, y, label],
        lambda x, y, label: {"x": x, "y": y},
        lambda x, y, label: ({"x": x, "y": y}, label),
    ],
)
def test_loaders_of_several_inputs(item: Callable[..., object]) -> None:
    x, y = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.ones(40, 24)
    model = Two()
    kind = aimet.ChannelPruningParameters
    parameters = kind(
        [item(x[part : part + 8], y[part : part + 8], torch.zeros(8)) for part in range(0, 40, 8)],
        500,
        False,
        kind.Mode.manual,
        kind.ManualModeParams([aimet.ModuleCompRatioPair(model.b, 0.5)]),
    )
    small, statistics = aimet.ModelCompressor.compress_model(
        model,
        lambda model, iterations, use_cuda: 0.5,
        None,
        [(1, 12), (1, 24)],
        PRUNING,
        aimet.CostMetric.mac,
        parameters,
    )
    assert small.a.out_features == small.b.in_features == 12
    assert any("fitted to 40 samples of data_loader" in note for note in statistics.notes)


def test_no_more_is_read_than_was_asked_for(task: Task) -> None:
    read = []

    def loader() -> Iterator[tuple[Tensor, int]]:
        while True:
            read.append(len(read))
            yield _images(24, seed=len(read)), 0

    parameters = task.parameters(PRUNING, "manual")
    parameters.data_loader, parameters.num_reconstruction_samples = loader(), 1400
    _, statistics = task.compress(PRUNING, parameters)
    # A tenth of 1400 are 140 images.
    assert len(read) == 6
    assert any("fitted to 140 samples of data_loader, with" in note for note in statistics.notes)


@pytest.mark.parametrize(
    ("loader", "samples", "error", "message"),
    [
        (
            [(torch.zeros(2, 3, 8, 8), 0, 0)],
            500,
            sr.BatchesError,
            r"batch 0 is a tuple of 3, and input_shape",
        ),
        (["text"], 500, sr.BatchesError, r"batch 0 is a str"),
        ([], 500, sr.BatchesError, r"data_loader yields no tensors"),
        (None, 500, sr.OptionError, r"data_loader is a NoneType"),
        (torch.zeros(2, 3, 8, 8), 500, sr.OptionError, r"data_loader is a Tensor"),
        ([torch.zeros(2, 3, 8, 8)], 0, sr.OptionError, r"num_reconstruction_samples=0"),
        ([torch.zeros(2, 3, 8, 8)], 0.5, sr.OptionError, r"num_reconstruction_samples=0.5"),
    ],
)
def test_loaders_that_cannot_be_used(
    loader: object, samples: object, error: type[Exception], message: str, task: Task
) -> None:
    parameters = task.parameters(PRUNING, "manual")
    parameters.data_loader, parameters.num_reconstruction_samples = loader, samples
    with pytest.raises(error, match=message):
        task.compress(PRUNING, parameters)


def test_the_choice_of_samples_is_uniform_and_bounded() -> None:
    sampler = seams.InputSampler(torch.device("cpu"), max_samples=100)
    for start in range(0, 2000, 40):
        sampler.add(as_batch(torch.arange(start, start + 40, dtype=torch.float32)[:, None]))
    batches = sampler.batches()
    kept = torch.cat([batch[0] for batch in batches]).flatten()
    assert (sampler.n_kept, sampler.n_seen, len(kept)) == (100, 2000, 100)
    assert kept.tolist() == sorted(set(kept.tolist()))
    # A quarter of them from each quarter, about: four standard deviations.
    assert all(8 < int(((kept >= low) & (kept < low + 500)).sum()) < 43 for low in range(0, 2000, 500))
    assert max(len(batch[0]) for batch in batches) <= 32


def test_the_choice_of_samples_keeps_to_its_bytes() -> None:
    sampler = seams.InputSampler(torch.device("cpu"), max_bytes=4 * 10 * 7 + 1)
    for _ in range(5):
        sampler.add(as_batch(torch.zeros(8, 10)))
    assert (sampler.n_kept, sampler.n_seen) == (7, 40)
    # One sample is kept whatever it takes.
    small = seams.InputSampler(torch.device("cpu"), max_bytes=1)
    small.add(as_batch(torch.zeros(8, 10)))
    assert small.n_kept == 1


def test_calls_that_cannot_be_cut_stay_whole() -> None:
    sampler = seams.InputSampler(torch.device("cpu"))
    sampler.add(as_batch((torch.zeros(3, 4), torch.zeros(5))))
    (batch,) = sampler.batches()
    assert [tuple(part.shape) for part in batch] == [(3, 4), (5,)]


# --- Saved scores ---


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [SPATIAL, PRUNING])
def test_scores_are_written_once_and_read_again(
    scheme: aimet.CompressionScheme, task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "eval_scores.json"
    _, first = task.compress(
        scheme, task.parameters(scheme, "auto", target_comp_ratio=0.9, saved_eval_scores_dict=str(path))
    )
    assert json.loads(path.read_text())["methods"] == [scheme.name]
    n_calls = len(task.calls)
    assert n_calls > 5
    task.calls.clear()
    _, second = task.compress(
        scheme,
        # The number of candidates is that of the file.
        task.parameters(
            scheme,
            "auto",
            target_comp_ratio=0.7,
            num_comp_ratio_candidates=9,
            saved_eval_scores_dict=path,
            use_monotonic_fit=True,
        ),
    )
    assert [call for call, _ in task.calls] == [(None, False)] * 2
    assert float(second.mac_compression_ratio) <= 0.7 < float(first.mac_compression_ratio)
    tables = [s.compression_ratio_selection_stats.eval_scores_dictionary for s in (first, second)]
    assert tables[0] == tables[1]
    assert [path.name for path in tmp_path.iterdir()] == ["eval_scores.json"]


@pytest.mark.parametrize("name", ["greedy_selection_eval_scores_dict.pkl", "scores.pickle", "scores.json"])
def test_pickles_are_refused_by_name(name: str, task: Task, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"conv2": {Decimal("0.5"): 0.9}}))
    with pytest.raises(sr.ScoreError, match=rf"saved_eval_scores_dict=.*{name}.*is a pickle.*JSON file"):
        task.compress(SPATIAL, task.parameters(SPATIAL, "auto", saved_eval_scores_dict=str(path)))
    assert task.calls == []


@pytest.mark.slow
def test_scores_may_be_of_shuffled_data(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    images = torch.cat(list(task.images))
    for target, shuffled in ((0.9, images), (0.7, images.flip(0))):
        task.calls.clear()
        parameters = task.parameters(PRUNING, "auto", target_comp_ratio=target, saved_eval_scores_dict=path)
        parameters.data_loader = shuffled.split(16)
        _, statistics = task.compress(PRUNING, parameters)
        assert float(statistics.mac_compression_ratio) <= target
    assert len(task.calls) == 2
    assert any(note.startswith("saved_eval_scores_dict: the scores were") for note in statistics.notes)


@pytest.mark.parametrize("name", ["missing/scores.json", "."])
def test_scores_need_a_folder(name: str, task: Task, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(sr.FileError, match=r"saved_eval_scores_dict=.* cannot be written; give a file in"):
        task.compress(SPATIAL, task.parameters(SPATIAL, "auto", saved_eval_scores_dict=path))
    assert task.calls == []


def test_scores_of_another_model_are_refused(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    task.compress(SPATIAL, task.parameters(SPATIAL, "auto", saved_eval_scores_dict=path))
    with torch.no_grad():
        task.model.conv2.weight[0] += 1
    with pytest.raises(sr.ScoreError, match="measured with other weights"):
        task.compress(SPATIAL, task.parameters(SPATIAL, "auto", saved_eval_scores_dict=path))


# --- Bad input ---


def _call(task: Task, **changed: object) -> object:
    arguments = {
        "model": task.model,
        "eval_callback": task.evaluate,
        "eval_iterations": 1,
        "input_shape": (1, 3, 8, 8),
        "compress_scheme": SPATIAL,
        "cost_metric": aimet.CostMetric.mac,
        "parameters": task.parameters(SPATIAL, "manual"),
    }
    return aimet.ModelCompressor.compress_model(**(arguments | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "net"}, r"model is a str; give a torch.nn.Module"),
        ({"eval_callback": 3}, r"eval_callback is a int; give a function \(model, iterations, use_cuda\)"),
        ({"trainer": 3}, r"trainer is a int without train_model"),
        ({"input_shape": 3}, r"input_shape is 3; give a shape"),
        ({"input_shape": ()}, r"input_shape is \(\); give a shape"),
        ({"input_shape": (1, 3, -8, 8)}, r"input_shape is \(1, 3, -8, 8\)"),
        ({"input_shape": [(1, 3), 8]}, r"input_shape is \[\(1, 3\), 8\]"),
        (
            {"compress_scheme": "spatial_svd"},
            r"compress_scheme is 'spatial_svd'; .*CompressionScheme.spatial_svd",
        ),
        ({"compress_scheme": WEIGHT}, r"parameters is a SpatialSvdParameters; .*weight_svd takes WeightSvd"),
        ({"cost_metric": 1}, r"cost_metric is 1; give one of CostMetric.mac, CostMetric.memory"),
        ({"parameters": None}, r"parameters is a NoneType; compress_scheme=spatial_svd takes SpatialSvdPara"),
    ],
)
def test_arguments_of_another_kind(changed: dict[str, object], message: str, task: Task) -> None:
    with pytest.raises(sr.OptionError, match=message):
        _call(task, **changed)


def _spatial(mode: object, params: object, multiplicity: object = 1) -> aimet.SpatialSvdParameters:
    return aimet.SpatialSvdParameters(mode, params, multiplicity)


def test_parameters_that_make_no_sense(task: Task) -> None:
    kind = aimet.SpatialSvdParameters
    greedy = aimet.GreedySelectionParameters(0.5)
    manual = kind.ManualModeParams([aimet.ModuleCompRatioPair(task.model.conv2, 0.5)])
    weight = aimet.WeightSvdParameters
    cases: list[tuple[object, str]] = [
        (
            _spatial("auto", manual),
            r"SpatialSvdParameters: mode is 'auto'; .*SpatialSvdParameters.Mode.manual",
        ),
        (
            _spatial(kind.Mode.auto, manual),
            r"params is a ManualParams; give SpatialSvdParameters.AutoModeParams",
        ),
        (
            _spatial(kind.Mode.manual, kind.AutoModeParams(greedy)),
            r"params is a AutoParams; give SpatialSvdParameters.ManualModeParams",
        ),
        (_spatial(kind.Mode.manual, manual, 0), r"multiplicity=0; give a whole number of at least 1"),
        (_spatial(kind.Mode.manual, manual, 1.5), r"multiplicity=1.5"),
        (_spatial(kind.Mode.manual, manual, True), r"multiplicity=True"),
        (_spatial(kind.Mode.auto, kind.AutoModeParams(0.5)), r"greedy_select_params is a float"),
        (
            _spatial(kind.Mode.auto, kind.AutoModeParams(greedy, task.model.conv2)),
            r"modules_to_ignore is a Conv2d; give a list of modules",
        ),
        (
            _spatial(kind.Mode.auto, kind.AutoModeParams(greedy, ["conv2"])),
            r"modules_to_ignore holds the text 'conv2'; .*get_submodule\('conv2'\); did you mean 'conv2'",
        ),
        (
            _spatial(kind.Mode.auto, kind.AutoModeParams(greedy, [nn.Conv2d(1, 1, 1)])),
            r"modules_to_ignore holds a Conv2d that is no layer inside the model; .*'model.conv1'",
        ),
        (
            _spatial(kind.Mode.auto, kind.AutoModeParams(greedy, [task.model])),
            r"modules_to_ignore holds a Net that is no layer inside the model",
        ),
    ]
    for parameters, message in cases:
        with pytest.raises(sr.OptionError, match=message):
            _call(task, parameters=parameters)
    auto = weight.AutoModeParams("tar", greedy)
    with pytest.raises(sr.OptionError, match=r"rank_select_scheme is 'tar'; .*RankSelectScheme.greedy"):
        _call(task, compress_scheme=WEIGHT, parameters=weight(weight.Mode.auto, auto))


@pytest.mark.parametrize("target", [0, 1.5, -0.5, "half", Decimal("NaN"), None, True])
def test_targets_out_of_range(target: object, task: Task) -> None:
    with pytest.raises(
        sr.OptionError, match=r"target_comp_ratio=.* is no cost after / cost before in \(0, 1\]"
    ):
        _call(task, parameters=task.parameters(SPATIAL, "auto", target_comp_ratio=target))


@pytest.mark.parametrize("number", [1, 0, 2.5, "10"])
def test_too_few_candidates(number: object) -> None:
    with pytest.raises(
        sr.OptionError, match=r"num_comp_ratio_candidates=.*; give a whole number of at least 2"
    ):
        aimet.GreedySelectionParameters(0.5, num_comp_ratio_candidates=number)


def test_a_target_out_of_reach_names_the_floor(task: Task) -> None:
    with pytest.raises(sr.BudgetError, match=r"macs=0.05"):
        _call(task, parameters=task.parameters(SPATIAL, "auto", target_comp_ratio=0.05))


@pytest.mark.parametrize(
    ("scheme", "remains"),
    # Of channels, an ignored layer may still make fewer.
    [
        (SPATIAL, r"% 'conv[13]' \(left alone: in modules_to_ignore\)"),
        (PRUNING, r"% layers \(\d\) and groups \(2\)"),
    ],
)
def test_a_floor_is_told_in_aimets_words(scheme: aimet.CompressionScheme, remains: str, task: Task) -> None:
    ignored = (task.model.conv1, task.model.conv3)
    parameters = task.parameters(scheme, "auto", ignored=ignored, target_comp_ratio=0.01)
    with pytest.raises(sr.BudgetError, match=remains) as told:
        _call(task, compress_scheme=scheme, parameters=parameters)
    assert "Raise target_comp_ratio, or allow more: fewer modules in modules_to_ignore" in str(told.value)
    for other in ("layers=", "skip", "score table", "multiple_of"):
        assert other not in str(told.value)


def test_manual_pairs_that_make_no_sense(task: Task) -> None:
    model = task.model
    model.pool = nn.AvgPool2d(2)
    kind = aimet.SpatialSvdParameters
    cases: list[tuple[object, str]] = [
        ([], r"list_of_module_comp_ratio_pairs is \[\]; give a list of ModuleCompRatioPair"),
        (3, r"list_of_module_comp_ratio_pairs is 3"),
        ([(model.conv2, 0.5)], r"holds a tuple; give ModuleCompRatioPair"),
        ([aimet.ModuleCompRatioPair("conv2", 0.5)], r"holds the text 'conv2'; give the module itself"),
        (
            [aimet.ModuleCompRatioPair(nn.Linear(2, 2), 0.5)],
            r"holds a Linear that is no layer inside the model",
        ),
        ([aimet.ModuleCompRatioPair(model.conv2, 0.5)] * 2, r"layer 'conv2' stands twice"),
        ([aimet.ModuleCompRatioPair(model.conv2, 1.5)], r"layer 'conv2': comp_ratio 1.5 is no cost after"),
        ([aimet.ModuleCompRatioPair(model.conv2, 0)], r"layer 'conv2': comp_ratio 0 is no cost after"),
        ([aimet.ModuleCompRatioPair(model.conv2, None)], r"layer 'conv2': comp_ratio None is no cost"),
        ([aimet.ModuleCompRatioPair(model.pool, 0.5)], r"module 'pool' is no layer that can be compressed"),
        ([aimet.ModuleCompRatioPair(model.fc1, 0.5)], r"'fc1': spatial_svd does not apply to this Linear"),
    ]
    for pairs, message in cases:
        with pytest.raises(sr.OptionError, match=message):
            _call(task, parameters=kind(kind.Mode.manual, kind.ManualModeParams(pairs)))


def test_channels_of_the_inputs_cannot_go(task: Task) -> None:
    parameters = task.parameters(PRUNING, "manual", pairs=[(task.model.conv1, 0.5)])
    with pytest.raises(
        sr.OptionError, match=r"layer 'conv1': channel_pruning cannot take input channels from it"
    ):
        task.compress(PRUNING, parameters)


def test_ignoring_everything_leaves_nothing(task: Task) -> None:
    model = task.model
    parameters = task.parameters(SPATIAL, "auto", ignored=[model.conv1, model.conv2, model.conv3])
    with pytest.raises(
        sr.OptionError, match=r"modules_to_ignore leaves no layer to compress; spatial_svd applies"
    ):
        task.compress(SPATIAL, parameters)
    parameters = task.parameters(PRUNING, "auto", ignored=[model.conv2, model.conv3, model.fc2])
    with pytest.raises(sr.OptionError, match=r"modules_to_ignore leaves no channels to remove"):
        task.compress(PRUNING, parameters)


def test_a_callback_that_returns_no_number(task: Task) -> None:
    with pytest.raises(sr.ScoreError, match=r"eval_callback returned a NoneType; return one number"):
        _call(task, eval_callback=lambda model, iterations, use_cuda: None)


# --- A script ---

# Written after AIMET's documentation, in its order: automatic spatial SVD, then channel pruning of it.
_SCRIPT = """
from decimal import Decimal

import torch
from aimet_common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
from aimet_torch.common.defs import RankSelectScheme
from aimet_torch.compress import ModelCompressor
from aimet_torch.defs import (
    ChannelPruningParameters,
    ModuleCompRatioPair,
    SpatialSvdParameters,
    WeightSvdParameters,
)



class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.relu1 = torch.nn.ReLU()
        self.conv2 = torch.nn.Conv2d(16, 24, 3, padding=1)
        self.relu2 = torch.nn.ReLU()
        self.conv3 = torch.nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.relu3 = torch.nn.ReLU()
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.pool(self.relu3(self.conv3(x))).flatten(1))


torch.manual_seed(0)
images = torch.randn(64, 3, 8, 8)
model = Net()
with torch.no_grad():
    labels = model(images).argmax(1)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)


def evaluate_model(model, iterations, use_cuda=False):
    model.eval()
    right = total = 0
    with torch.no_grad():
        for number, (x, y) in enumerate(loader):
            if iterations is not None and number >= iterations:
                break
            if use_cuda:
                x, y = x.cuda(), y.cuda()
            right += (model(x).argmax(1) == y).sum().item()
            total += len(y)
    return right / total


class Trainer:
    def __init__(self):
        self.layers = []

    def train_model(self, model, layer, train_flag=True):
        if not train_flag:
            return
        self.layers.append(layer.name)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


greedy_params = GreedySelectionParameters(target_comp_ratio=Decimal(0.75), num_comp_ratio_candidates=4)
auto_params = SpatialSvdParameters.AutoModeParams(greedy_params, modules_to_ignore=[model.conv1])
params = SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto_params, multiplicity=4)
svd_model, svd_stats = ModelCompressor.compress_model(
    model=model,
    eval_callback=evaluate_model,
    eval_iterations=2,
    input_shape=(1, 3, 8, 8),
    compress_scheme=CompressionScheme.spatial_svd,
    cost_metric=CostMetric.mac,
    parameters=params,
    trainer=Trainer(),
    visualization_url=None,
)
print(svd_stats)

wide = next(m for m in svd_model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == 24)
manual_params = ChannelPruningParameters.ManualModeParams(
    [ModuleCompRatioPair(module=wide, comp_ratio=Decimal(0.5))]
)
cp_params = ChannelPruningParameters(
    data_loader=loader,
    num_reconstruction_samples=500,
    allow_custom_downsample_ops=True,
    mode=ChannelPruningParameters.Mode.manual,
    params=manual_params,
)
cp_model, cp_stats = ModelCompressor.compress_model(
    svd_model,
    eval_callback=evaluate_model,
    eval_iterations=None,
    input_shape=(1, 3, 8, 8),
    compress_scheme=CompressionScheme.channel_pruning,
    cost_metric=CostMetric.memory,
    parameters=cp_params,
)

weight_params = WeightSvdParameters(
    mode=WeightSvdParameters.Mode.auto,
    params=WeightSvdParameters.AutoModeParams(
        rank_select_scheme=RankSelectScheme.greedy,
        select_params=GreedySelectionParameters(0.8, 4, use_monotonic_fit=True),
    ),
)
weight_model, weight_stats = ModelCompressor.compress_model(
    model, evaluate_model, 1, (1, 3, 8, 8), CompressionScheme.weight_svd, CostMetric.memory, weight_params
)
ratios = [layer.compression_ratio for layer in weight_stats.per_layer_stats]
scores = weight_stats.compression_ratio_selection_stats.eval_scores_dictionary
"""


@pytest.mark.slow
def test_a_script_runs_with_other_import_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = _SCRIPT
    for module in _IMPORTS:
        script = script.replace(f"from {module} import", "from slimrank.aimet import")
    changed = [a for a, b in zip(_SCRIPT.splitlines(), script.splitlines(), strict=True) if a != b]
    assert all(line.startswith("from aimet_") for line in changed)
    assert "aimet_torch" not in script
    names: dict[str, object] = {}
    exec(compile(script, "script.py", "exec"), names)
    assert float(names["svd_stats"].mac_compression_ratio) <= 0.75
    wide = next(name for name, part in names["svd_model"].named_modules() if part is names["wide"])
    assert names["cp_model"].get_submodule(wide).in_channels == 12
    assert float(names["weight_stats"].memory_compression_ratio) <= 0.8
    assert any(ratio is not None for ratio in names["ratios"])
    assert set(names["scores"]) == {"conv1", "conv2", "conv3", "fc"}
    assert "conv2" in capsys.readouterr().out
    # No pickles, no other files.
    assert list(tmp_path.iterdir()) == []


def test_the_page_runs(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "aimet.md").read_text(encoding="utf-8")
    (imports,) = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    script, own = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    lines = [line[1:] for line in imports.splitlines() if line.startswith("+")]
    # Fewer candidates: the same in less time.
    script, own = (
        script.replace("candidates=10", "candidates=4"),
        own.replace("candidates=10", "candidates=4"),
    )

    def evaluate(model: nn.Module, iterations: int | None, use_cuda: bool) -> float:
        score = task.evaluate(model, iterations, use_cuda)
        model.eval()
        return score

    names: dict[str, object] = {
        "model": task.model,
        "evaluate": evaluate,
        "batches": list(task.images),
    }
    exec("\n".join((*lines, script, own)), names)
    assert float(names["statistics"].mac_compression_ratio) <= 0.75
    assert names["result"].keep_ratio("macs") <= 0.75
    # One folder, one file: those that the page names.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed", "scores.json"]


def test_a_callback_that_returns_no_finite_number_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    pair = aimet.ModuleCompRatioPair(model[0], 0.5)
    manual = aimet.WeightSvdParameters.ManualModeParams([pair])
    mode = aimet.WeightSvdParameters.Mode.manual
    with pytest.raises(sr.ScoreError, match=r"eval_callback returned nan; return a finite number"):
        aimet.ModelCompressor.compress_model(
            model,
            lambda model, *_: float(model(torch.zeros(1, 8)).detach().sum()) * float("nan"),
            1,
            (1, 8),
            aimet.CompressionScheme.weight_svd,
            aimet.CostMetric.mac,
            aimet.WeightSvdParameters(mode, manual),
        )
