# SPDX-License-Identifier: Apache-2.0
"""The example that trains a compressed network for int8."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    file = Path(__file__).parents[2] / "examples" / "train_int8.py"
    spec = importlib.util.spec_from_file_location("train_int8", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = torch._inductor.config.pre_grad_custom_pass
    with warnings.catch_warnings():
        # torchao's own code is not up to date with torch.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    torch._inductor.config.pre_grad_custom_pass = before
    return module


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 6, (3, 1), bias=False), nn.Conv2d(6, 8, (1, 3))),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    return model.eval()


def _images() -> Tensor:
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_network_is_trained_with_rounding(
    example: ModuleType,
    tmp_path: Path,
    snapshot: Callable[[nn.Module], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seams.time_shortly(monkeypatch)
    model, images = _network(), _images()
    before = snapshot(model)
    tuned = example.train_for_int8(model, model, images, epochs=2, batch_size=32, learning_rate=1e-2)
    assert snapshot(model) == before
    # An ordinary module of the same layers, every one of which learned; statistics of norms stay.
    assert [type(module) for module in tuned.modules()] == [type(module) for module in model.modules()]
    learned = dict(tuned.named_parameters())
    assert all(not torch.equal(learned[name], value) for name, value in model.named_parameters())
    buffers = dict(tuned.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())
    exported = sr.export(tuned, tmp_path / "model.onnx", list(images.split(16)), quantize="int8")
    assert exported.int8 is not None
    assert exported.int8.layers == ("0", "3.0", "3.1", "7")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_training_reaches_targets_with_rounding(example: ModuleType) -> None:
    """Towards another network's outputs, so that there is something to learn in a few steps."""
    model, teacher, images = _network(), _network(), _images()
    with torch.no_grad():
        teacher[-1].bias.copy_(torch.tensor([1.0, -1.0, 0.5, 0.0, -0.5]))

    def apart(found: nn.Module) -> float:
        with torch.no_grad():
            return float((found(images).softmax(1) - teacher(images).softmax(1)).abs().mean())

    tuned = example.train_for_int8(model, teacher, images, epochs=25, batch_size=8, learning_rate=1e-2)
    assert apart(tuned) < 0.2 * apart(model)
