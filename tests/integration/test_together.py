# SPDX-License-Identifier: Apache-2.0
"""Features that meet in one model: each alone has tests of its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


class _Reads(nn.Module):
    """A forward that asks its recurrent layer what it is, and calls it by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.fc = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.r, nn.LSTM)
        self.r.flatten_parameters()
        states = [x.new_zeros(self.r.num_layers, len(x), self.r.hidden_size) for _ in range(2)]
        y, _ = self.r(input=x, hx=(states[0], states[1]))
        return self.fc(y[:, -1])


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_forward_that_reads_its_recurrent_layer() -> None:
    torch.manual_seed(0)
    study = sr.study(_Reads().eval(), [_rows(12, 6, 12)], progress=False)
    assert "fc" in study.grams
    result = study.apply(study.plan(macs=0.8))
    assert "r" in result.plan.groups
    assert result.after == result.plan.after


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_recurrent_layers_with_weight_norm_have_a_reason(name: str, is_old: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(12, 16, batch_first=True)
    if is_old:
        torch.nn.utils.weight_norm(layer, name)
    else:
        torch.nn.utils.parametrizations.weight_norm(layer, name)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.r, self.fc = nn.Linear(12, 12), layer, nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.r(self.e(x))[0][:, -1])

    study = sr.study(Net().eval(), [_rows(12, 6, 12)], progress=False)
    assert study.structure.layers["fc"].methods
    assert all(group.reason for group in study.structure.channels.groups.values() if "r" in group.producers)


class _Scaled(nn.Module):
    """Constants of fixed sizes beside a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(8, 32, 3, padding=1), nn.Conv1d(32, 48, 3, padding=1, groups=2)
        self.g, self.h = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(48))
        self.o = nn.Conv1d(48, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.a(x) * self.g.view(1, 32, 1)).relu()
        x = (self.b(x) + self.h.reshape(1, 48, 1)).relu()
        return self.o(x).mean(-1)


def test_constants_of_fixed_sizes_beside_grouped_kernels(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return _Scaled().eval()

    batches = [_rows(12, 8, 12)]
    study = sr.study(build(), batches, progress=False)
    halves = {
        name: ("channel_pruning", 0.5)
        for name, group in study.structure.channels.groups.items()
        if not group.reason
    }
    plan = sr.Plan.manual(study, halves)
    result = study.apply(plan)
    assert result.after.macs == plan.after.macs
    assert len(plan.groups) > 1
    result.save(tmp_path / "small")
    loaded = sr.load(tmp_path / "small", model=build())
    replayed = sr.apply(build(), plan)
    again = sr.apply(build(), plan, batches, progress=False)
    assert again.after.macs == plan.after.macs
    with torch.no_grad():
        torch.testing.assert_close(loaded(batches[0]), result.model(batches[0]))
        assert replayed.model(batches[0]).shape == (12, 6)
    # A result that lost no channel is the user's model as it was.
    pair = study.apply(sr.Plan.manual(study, {"o": ("weight_svd", {"rank": 2})}))
    assert not any("forward" in vars(module) for module in pair.model.modules())


def test_a_second_step_leaves_nothing_behind() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.o = nn.Conv1d(8, 32, 3), nn.Parameter(torch.rand(32)), nn.Conv1d(32, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o((self.a(x) * self.g.view(1, 32, 1)).relu()).mean(-1)

    torch.manual_seed(0)
    batches = [_rows(12, 8, 12)]
    study = sr.study(Net().eval(), batches, progress=False)
    first = study.apply(sr.Plan.manual(study, {"a": ("channel_pruning", 0.5)}))
    assert any("slimrank" in note.text for note in first.notes)
    again = sr.study(first, batches, progress=False)
    second = again.apply(again.plan(macs=0.8))
    assert torch._C._len_torch_function_stack() == 0
    with torch.no_grad():
        assert second.model(batches[0]).shape == (12, 6)


@pytest.mark.slow
def test_more_groups_than_numpy_has_dimensions() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *(Block() for _ in range(70)), nn.Linear(8, 5)).eval()
    study = sr.study(model, [_rows(16, 6)], progress=False, effort="fast", methods=("channel_pruning",))
    assert len(study.group_curves) > 64
    for macs in (0.5, 0.98):
        assert study.plan(macs=macs, multiple_of=1).keep_ratio("macs") <= macs
