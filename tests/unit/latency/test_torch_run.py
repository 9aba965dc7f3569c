# SPDX-License-Identifier: Apache-2.0
"""Models that PyTorch runs itself, operation by operation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seams
import slimrank as sr
from slimrank.deploy import OpenFile, TimedFile
from slimrank.forward import as_batch
from slimrank.latency import Backend, open_timed


class Net(nn.Module):
    """A convolution and a pair, a norm, a sum that is no module, and a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pair = nn.Sequential(nn.Conv2d(8, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = x + self.pair(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def opened(backend: str, model: nn.Module, *, threads: int = 1) -> TimedFile:
    batch = as_batch(torch.randn(6, 3, 16, 16))
    # Nothing is written.
    return open_timed(backend, model, [batch], Path("no such folder"), batch=4, threads=threads)


@pytest.mark.parametrize("backend", ["torch", "torch-channels-last"])
def test_operations_have_times_modules_and_sources(backend: str) -> None:
    model = Net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = opened(backend, model)
    assert file.batch == 4
    nodes = file.nodes()
    assert all(node.nanoseconds > 0 for node in nodes)
    products = [node.module for node in nodes if node.kind in ("convolution", "addmm")]
    assert products == ["stem", "pair.0", "pair.1", "fc"]
    found = {(node.kind, node.module): node.sources for node in nodes}
    assert found["native_batch_norm", "norm"] == ("stem",)
    assert found["add", ""] == ("pair.1", "stem")
    assert found["addmm", "fc"] == ("pair.1", "stem")
    # The transposed weight of a Linear layer comes from no product.
    assert found["t", "fc"] == ()
    outputs = file.run()
    assert isinstance(outputs, Tensor)
    assert outputs.shape == (4, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.is_contiguous() for value in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_maps_lie_in_memory_with_their_channels_last() -> None:
    seen = []

    class Spy(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.stem(x).is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    opened("torch", Spy().eval()).run()
    first = len(seen)
    opened("torch-channels-last", Spy().eval()).run()
    assert not any(seen[:first])
    assert all(seen[first:])


def test_threads_are_those_of_the_run_alone() -> None:
    seen = []

    class Spy(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    file = opened("torch", Spy().eval(), threads=2)
    file.run()
    assert seen[-1] == 2
    assert torch.get_num_threads() == before


def test_operations_that_change_from_run_to_run_are_told() -> None:
    class Moody(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x.abs() if self.calls % 2 else x)

    file = opened("torch", Moody().eval())
    with pytest.raises(
        sr.LatencyError, match=r"Moody does not run the same operations each time: .* exports it"
    ):
        file.nodes()


def test_parts_of_another_runtime_stand_in_where_one_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(*_: object, batch: int, **__: object) -> OpenFile:
        return OpenFile(run=lambda: "ran", batch=batch)

    seams.invent_backend(monkeypatch, "abacus", Backend(open=whole, parts_of="torch"))
    file = opened("abacus", Net().eval())
    assert file.run() == "ran"
    assert {"stem", "pair.0", "pair.1", "fc"} <= {node.module for node in file.nodes()}
