# SPDX-License-Identifier: Apache-2.0
"""int8 that torchao puts into graphs, for torch and ExecuTorch: read by hand; what stays in float."""

import importlib
import importlib.util
import math
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import seams
import slimrank as sr

OPERATIONS = "torch.ao.quantization.fx._decomposed"
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
HAS_EXECUTORCH = importlib.util.find_spec("executorch") is not None
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")
needs_executorch = pytest.mark.skipif(not HAS_EXECUTORCH, reason="executorch is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
x86_only = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names of x86's quantizer"
)


@pytest.fixture(autouse=True)
def quick_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed for a moment only."""
    seams.time_shortly(monkeypatch)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails, as it does without a compiler, and takes no time."""

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", fail)


class Block(nn.Module):
    """One ReLU for two places, a pair, a shortcut, a norm that can be folded and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.pair = nn.Sequential(
            nn.Conv2d(16, 12, (3, 1), padding=(1, 0), bias=False),
            nn.Conv2d(12, 16, (1, 3), padding=(0, 1)),
        )
        self.out_norm = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(image)))
        y = self.pair(x)
        y += x
        x = self.pool(self.relu(self.out_norm(y)))
        return self.head(x.mean((2, 3)))


class Mlp(nn.Module):
    """Linear layers for int8 weights, beside a convolution, which has none; the input is added first."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.head = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.rows(x)
        return self.head(self.conv(x[:, None]).flatten(1))


class Twice(nn.Module):
    """Layers that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x).relu()).mean((2, 3)))


def _block() -> nn.Module:
    torch.manual_seed(0)
    model = Block().eval()
    for norm in (model.norm, model.out_norm):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    return model


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return Mlp().eval()


def _images(n_batches: int = 4, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(n_batches)]


def _rows(n_batches: int = 4, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 24, generator=generator) for _ in range(n_batches)]


def _notes(exported: sr.Exported) -> str:
    return "\n".join(str(note) for note in exported.notes)


def _decibels(model: nn.Module, found: Tensor, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
    return 10 * math.log10(float(expected.square().sum() / (found - expected).square().sum()))


def _read(path: Path) -> torch.export.ExportedProgram:
    """A file, as the notes tell to read it."""
    importlib.import_module(OPERATIONS)
    return torch.export.load(path)


def _products(exported: torch.export.ExportedProgram) -> Iterator[Node]:
    for node in exported.graph.nodes:
        if str(node.target).startswith(("aten.conv", "aten.linear")):
            yield node


def _source(node: object) -> str:
    assert isinstance(node, Node)
    return str(node.target)


def _keep(monkeypatch: pytest.MonkeyPatch, format: str, kept: set[str]) -> None:
    """Has these layers stay in float, as those that hurt do."""
    rows = seams.FORMATS[format].precisions
    row = rows["int8"]
    monkeypatch.setitem(
        rows,
        "int8",
        replace(
            row, write=lambda program, plain, path, batches, _: row.write(program, plain, path, batches, kept)
        ),
    )


@pytest.mark.slow
@needs_torchao
@needs_compiler
@x86_only
def test_a_network_in_torch_runs_in_int8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, path = _block(), tmp_path / "model.pt2"
    before = torch._inductor.config.pre_grad_custom_pass
    exported = sr.export(model, path, _images(), format="torch", quantize="int8")
    assert capfd.readouterr() == ("", "")
    # Nothing of torchao stays in what the process compiles later.
    assert torch._inductor.config.pre_grad_custom_pass is before
    assert exported.int8 is not None
    assert exported.int8.layers == ("stem", "pair.0", "pair.1", "head")
    assert exported.int8.left == ()
    assert exported.int8.noise_db > 35
    assert f"import {OPERATIONS} before torch.export.load" in _notes(exported)
    assert "no compiler" not in _notes(exported)
    assert "answers otherwise" not in _notes(exported)
    program = _read(path)
    run = program.module()
    # Samples that it was not calibrated with, one and several of them.
    for images in (_images(seed=9)[0], _images(seed=9)[0][:1]):
        assert _decibels(model, run(images), images) > 35
    products = list(_products(program))
    assert len(products) == 4
    assert all("dequantize" in _source(argument) for node in products for argument in node.args[:2])
    # The values between the factors of a pair go from one integer kernel to the next.
    first, second = products[1:3]
    rounded = second.args[0].args[0]  # type: ignore[union-attr]
    assert "quantize_per_tensor" in _source(rounded)
    assert rounded.args[0] is first  # type: ignore[union-attr]
    matrices = [tensor for tensor in program.state_dict.values() if tensor.ndim > 1]
    assert [tensor.dtype for tensor in matrices] == [torch.int8] * 4


@pytest.mark.slow
@needs_torchao
@x86_only
@pytest.mark.usefixtures("no_compiler")
def test_weights_of_linear_layers_in_torch(tmp_path: Path) -> None:
    model, path = _mlp(), tmp_path / "model.pt2"
    exported = sr.export(model, path, _rows(), format="torch", quantize="int8_weights")
    assert exported.int8 is not None
    assert exported.int8.layers == ("rows.0", "rows.2", "head")
    assert exported.int8.left == ("conv",)
    notes = _notes(exported)
    assert "kept in float: 'conv'; torchao's quantizer leaves conv1d in float where values are" in notes
    # What compiled files do to inputs, and that this one could not be compiled.
    assert "may write its results over 'x'" in notes
    (warning,) = [note.text for note in exported.notes if note.is_warning]
    assert re.match(r"times are of the files as they are read, .*no compiler here.*install a C\+\+", warning)
    program = _read(path)
    for rows in (_rows(seed=9)[0], _rows(seed=9)[0][:1]):
        assert _decibels(model, program.module()(rows), rows) > 35
    assert [tensor.dtype for tensor in program.state_dict.values() if tensor.ndim == 2] == [torch.int8] * 3
    assert sum("choose_qparams" in str(node.target) for node in program.graph.nodes) == 3


@pytest.mark.slow
@needs_torchao
@pytest.mark.usefixtures("no_compiler")
def test_layers_of_torch_stay_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _keep(monkeypatch, "torch", {"pair", "head"})
    model, path = _block(), tmp_path / "model.pt2"
    exported = sr.export(model, path, _images(), format="torch", quantize="int8")
    assert exported.int8 is not None
    # A name stands for all that is inside; what was asked for is nothing that is left.
    assert exported.int8.layers == ("stem",)
    assert exported.int8.left == ()
    program = _read(path)
    rounded = ["dequantize" in _source(node.args[1]) for node in _products(program)]
    assert rounded == [True, False, False, False]
    images = _images(seed=9)[0]
    assert _decibels(model, program.module()(images), images) > 40


@pytest.mark.slow
@needs_torchao
@pytest.mark.usefixtures("no_compiler")
def test_layers_that_run_twice_are_quantised_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.pt2"
    exported = sr.export(Twice().eval(), path, _images(), format="torch", quantize="int8")
    assert exported.int8 is not None
    assert exported.int8.layers == ("conv", "head")
    assert ["dequantize" in _source(node.args[1]) for node in _products(_read(path))] == [True] * 3


@pytest.mark.slow
@needs_torchao
@pytest.mark.usefixtures("no_compiler")
def test_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = _block(), tmp_path / "model.pt2"

    def largest() -> set[object]:
        nodes = _read(path).graph.nodes
        return {node.args[4] for node in nodes if "quantize_per_tensor" in str(node.target)}

    seams.pretend_cpu(monkeypatch, "aarch64", has_vnni=False)
    exported = sr.export(model, path, _images(), format="torch", quantize="int8")
    assert exported.int8 is not None
    assert exported.int8.layers == ("stem", "pair.0", "pair.1", "head")
    assert "VNNI" not in _notes(exported)
    seams.pretend_cpu(monkeypatch, "x86_64", has_vnni=False)
    exported = sr.export(model, path, _images(), format="torch", quantize="int8")
    assert "no VNNI: activations have 7 bits" in _notes(exported)
    assert largest() == {127}
    seams.pretend_cpu(monkeypatch, "x86_64", has_vnni=True)
    exported = sr.export(model, path, _images(), format="torch", quantize="int8")
    assert "VNNI" not in _notes(exported)
    assert largest() == {255}
    seams.pretend_cpu(monkeypatch, "riscv64", has_vnni=False)
    with pytest.raises(sr.ExportError, match=r"int8 kernels for x86 and ARM, and this machine is 'riscv64'"):
        sr.export(model, path, _images(), format="torch", quantize="int8")


def test_torchao_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        sr.MissingPackageError, match=r"quantize='int8' needs torchao.*pip install 'slimrank\[torchao\]'"
    ):
        sr.export(_block(), tmp_path / "model.pt2", _images(), format="torch", quantize="int8")


@pytest.mark.slow
@needs_torchao
def test_int8_is_made_of_float32(tmp_path: Path) -> None:
    batches = [rows.double() for rows in _rows()]
    with pytest.raises(sr.ExportError, match=r"layer 'rows.0' computes in torch.float64.*model.float\(\)"):
        sr.export(_mlp().double(), tmp_path / "model.pt2", batches, format="torch", quantize="int8")


def _run_executorch(path: Path, x: Tensor) -> Tensor:
    runtime = seams.executorch_package("executorch.runtime").Runtime.get()
    (found,) = runtime.load_program(path.read_bytes()).load_method("forward").execute([x])
    return found  # type: ignore[no-any-return]


@needs_executorch
def test_a_network_in_executorch_runs_in_int8(tmp_path: Path) -> None:
    model, path = _block(), tmp_path / "model.pte"
    exported = sr.export(model, path, _images(), format="executorch", quantize="int8")
    assert exported.int8 is not None
    assert exported.int8.layers == ("stem", "pair.0", "pair.1", "head")
    assert exported.int8.left == ()
    assert exported.int8.noise_db > 35
    for images in (_images(seed=9)[0][:8], _images(seed=9)[0][:1]):
        assert _decibels(model, _run_executorch(path, images), images) > 35
    # Nothing is rounded outside XNNPACK.
    assert "quantize" not in _notes(exported).partition("outside XNNPACK")[2]
    assert exported.bytes < exported.int8.float_bytes


@needs_executorch
def test_weights_of_linear_layers_in_executorch(tmp_path: Path) -> None:
    model, path = _mlp(), tmp_path / "model.pte"
    exported = sr.export(model, path, _rows(), format="executorch", quantize="int8_weights")
    assert exported.int8 is not None
    assert exported.int8.layers == ("rows.0", "rows.2", "head")
    assert exported.int8.left == ("conv",)
    assert "XNNPACK's quantizer leaves conv1d in float where values are measured" in _notes(exported)
    for rows in (_rows(seed=9)[0][:8], _rows(seed=9)[0][:1]):
        assert _decibels(model, _run_executorch(path, rows), rows) > 35


@needs_executorch
def test_layers_of_executorch_stay_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _keep(monkeypatch, "executorch", {"pair", "head"})
    model, path = _block(), tmp_path / "model.pte"
    exported = sr.export(model, path, _images(), format="executorch", quantize="int8")
    assert exported.int8 is not None
    assert exported.int8.layers == ("stem",)
    assert exported.int8.left == ()
    images = _images(seed=9)[0][:8]
    assert _decibels(model, _run_executorch(path, images), images) > 35
