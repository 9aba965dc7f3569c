# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers through the whole way: input matrices split, inputs and hidden units removed."""

from pathlib import Path

import pytest
import torch
from nets import noise, settle
from torch import Tensor, nn

import slimrank as sr


class Heard(nn.Module):
    """A layer, a recurrent one, two layers on its last step."""

    def __init__(
        self, kind: type[nn.RNNBase], n_layers: int = 1, *, bidirectional: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 24)
        self.rnn = kind(24, 20, n_layers, batch_first=True, bidirectional=bidirectional, bias=bias)
        self.fc = nn.Linear(40 if bidirectional else 20, 16)
        self.out = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 10) to (N, 6)."""
        return self.out(self.fc(self.rnn(self.enter(x).relu())[0][:, -1]).relu())


def batches() -> list[Tensor]:
    return noise(5, 10, n=4, size=16)


def heard(kind: type[nn.RNNBase], n_layers: int = 1, *, bidirectional: bool = False) -> nn.Module:
    return settle(Heard(kind, n_layers, bidirectional=bidirectional).eval())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n_layers", "bidirectional"),
    [(nn.LSTM, 1, False), (nn.GRU, 2, True), (nn.RNN, 1, True)],
)
def test_the_whole_way(kind: type[nn.RNNBase], n_layers: int, bidirectional: bool, tmp_path: Path) -> None:
    model = heard(kind, n_layers, bidirectional=bidirectional)
    study = sr.study(model, batches(), progress=False)
    spec = {spec.name: spec for spec in study.layers}["rnn"]
    assert spec.methods == ("weight_svd", "channel_pruning")
    n_gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert spec.weight_shape == (n_gates * 20 * (1 + bidirectional), 24)
    hidden = ("channel_pruning", {"channels_kept": [*range(1, 20, 2)]})
    plan = sr.Plan.manual(
        study,
        {
            "enter": ("channel_pruning", {"channels_kept": [*range(0, 24, 2)]}),
            "rnn": [("weight_svd", {"rank": 5}), hidden],
        },
    )
    # Costs are counted on what was built, and compared with the plan's there.
    result = study.apply(plan)
    first, second = result.model.rnn
    assert type(first) is nn.Linear
    assert (first.in_features, first.out_features, first.bias) == (12, 5, None)
    assert type(second) is kind
    assert (second.input_size, second.hidden_size, second.num_layers) == (5, 10, n_layers)
    assert {layer.name: layer.fit for layer in result.layers}["rnn"] == "sequential"
    x = batches()[0]
    plan.save(tmp_path / "plan.json")
    replayed = sr.apply(model, sr.Plan.load(tmp_path / "plan.json"), batches(), progress=False)
    torch.testing.assert_close(replayed.model(x), result.model(x))
    result.save(tmp_path / "out")
    loaded = sr.load(tmp_path / "out", model=heard(kind, n_layers, bidirectional=bidirectional))
    torch.testing.assert_close(loaded(x), result.model(x))
    # The layer behind the new matrix is one like others to the next study.
    again = sr.study(result, batches(), progress=False)
    assert {spec.name for spec in again.layers} >= {"rnn.0", "rnn.1"}


def test_a_pair_of_the_rank_of_the_inputs_is_the_layer() -> None:
    model = heard(nn.LSTM, bidirectional=True)
    with torch.no_grad():
        # Features 18 and up always are what others are.
        model.enter.weight[18:] = model.enter.weight[:6]
        model.enter.bias[18:] = model.enter.bias[:6]
    study = sr.study(model, batches(), methods=("weight_svd",), progress=False)
    plan = sr.Plan.manual(study, {"rnn": ("weight_svd", {"rank": 18})})
    result = study.apply(plan)
    torch.testing.assert_close(result.model(batches()[0]), model(batches()[0]), rtol=1e-2, atol=2e-3)


def test_inputs_that_others_make_up_for_go_without_loss() -> None:
    model = heard(nn.GRU)
    with torch.no_grad():
        # Each feature comes twice, once doubled: what stays of a pair can do for both.
        model.enter.weight[12:] = 2 * model.enter.weight[:12]
        model.enter.bias[12:] = 2 * model.enter.bias[:12]
    study = sr.study(model, batches(), progress=False)
    plan = sr.Plan.manual(study, {"enter": ("channel_pruning", {"channels_kept": [*range(12)]})})
    result = study.apply(plan)
    assert result.model.rnn.input_size == 12
    torch.testing.assert_close(result.model(batches()[0]), model(batches()[0]), rtol=1e-2, atol=2e-3)


class WithStates(Heard):
    """The recurrent layer runs twice, from the states that it left."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 10) to (N, 6)."""
        y = self.enter(x).relu()
        return self.out(self.fc(self.rnn(y, self.rnn(y)[1])[0][:, -1]).relu())


class Packed(Heard):
    """The recurrent layer is given packed sequences."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 10) to (N, 6)."""
        rows = nn.utils.rnn.pack_sequence(list(self.enter(x).relu()))
        return self.out(self.fc(self.rnn(rows)[1][0][-1]).relu())


@pytest.mark.parametrize(
    ("kind", "bias", "reason"),
    [
        (Heard, False, "it has no bias, which would take up what its input matrix loses of the mean"),
        (WithStates, True, "its parent uses more than its output"),
        (Packed, True, "it is given packed sequences, which no other layer can read first"),
    ],
)
def test_layers_whose_matrix_is_not_split(kind: type[Heard], bias: bool, reason: str) -> None:
    model = settle(kind(nn.LSTM, bias=bias).eval())
    study = sr.study(model, batches(), methods=("weight_svd", "channel_pruning"), progress=False)
    found = {spec.name: spec for spec in study.layers}["rnn"]
    assert found.methods == ("channel_pruning",)
    result = study.apply(study.plan(macs=0.6, methods=("channel_pruning",)))
    assert result.after.macs <= 0.6 * result.before.macs
    study = sr.study(model, batches(), methods=("weight_svd",), progress=False)
    assert {spec.name: spec for spec in study.layers}["rnn"].reason.startswith(reason)


def test_without_data() -> None:
    model = heard(nn.GRU, bidirectional=True)
    study = sr.study(model, batches(), data_free=True, progress=False)
    result = study.apply(study.plan(params=0.6))
    assert result.after.params <= 0.6 * result.before.params
    plan = sr.Plan.manual(study, {"rnn": ("weight_svd", {"rank": 20})})
    first, second = study.apply(plan).model.rnn
    matrix = torch.cat([second.weight_ih_l0, second.weight_ih_l0_reverse]) @ first.weight
    original = torch.cat([model.rnn.weight_ih_l0, model.rnn.weight_ih_l0_reverse])
    # What the least singular values hold is lost, and nothing else.
    lost = torch.linalg.svdvals(original.detach().double())[20:].norm()
    torch.testing.assert_close((matrix - original).double().norm(), lost, rtol=1e-4, atol=1e-5)


def test_a_hook_may_change_layers_before_a_recurrent_one() -> None:
    model = heard(nn.LSTM)
    study = sr.study(model, batches(), progress=False)
    seen = []

    def on_layer(changed: nn.Module, name: str) -> None:
        seen.append(name)
        with torch.no_grad():
            changed.enter.bias += 0.01

    plan = sr.Plan.manual(study, {name: ("weight_svd", {"rank": 6}) for name in ("rnn", "fc")})
    result = study.apply(plan, on_layer=on_layer)
    assert seen == ["rnn", "fc"]
    assert result.model.rnn[0].out_features == 6


def test_units_that_only_the_layer_itself_reads_go_last() -> None:
    model = heard(nn.LSTM)
    with torch.no_grad():
        # Units 0 to 8 matter to the next step alone, 10 to 19 to nobody.
        model.fc.weight[:, :] = 0
        model.fc.weight[:, 9] = 1.0
        model.rnn.weight_hh_l0[:, 10:] = 0
    study = sr.study(model, batches(), progress=False)
    plan = sr.Plan.manual(study, {"rnn": ("channel_pruning", {"keep": 10})})
    assert plan.groups["rnn"] == tuple(range(10))
    result = study.apply(plan)
    torch.testing.assert_close(result.model(batches()[0]), model(batches()[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("n_layers", "bias"), [(1, True), (1, False), (2, True)])
def test_units_that_others_are_like_go_without_loss(
    kind: type[nn.RNNBase], n_layers: int, bias: bool
) -> None:
    torch.manual_seed(0)
    model = settle(Heard(kind, n_layers, bidirectional=True, bias=bias).eval())
    with torch.no_grad():
        # Units 10 to 19 are what 0 to 9 are, in both directions, and are read on their own.
        for name, parameter in model.rnn.named_parameters():
            gates = parameter.unflatten(0, (-1, 20))
            gates[:, 10:] = gates[:, :10]
            if "hh" in name:
                parameter.mul_(0.5)
    study = sr.study(model, batches(), progress=False)
    plan = sr.Plan.manual(study, {"rnn": ("channel_pruning", {"channels_kept": [*range(10)]})})
    result = study.apply(plan)
    assert result.model.rnn.hidden_size == 10
    torch.testing.assert_close(result.model(batches()[0]), model(batches()[0]), rtol=1e-2, atol=5e-3)
