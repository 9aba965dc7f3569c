# SPDX-License-Identifier: Apache-2.0
"""The small networks, one study for many tests, and what a caller's model looks like."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import nets as small_nets
import pytest
import torch
from torch import nn

import slimrank as sr

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def nets() -> ModuleType:
    """The module of small networks."""
    return small_nets


@pytest.fixture(scope="session")
def cnn_study() -> sr.Study:
    """Of the small convolutional network on its noise; it has no directory, and tests leave it as it is."""
    return sr.study(small_nets.cnn(), small_nets.noise(1, 8, 8), progress=False)


@pytest.fixture(scope="session")
def cnn_result(cnn_study: sr.Study) -> sr.Result:
    """Of half of its MACs; tests leave the model as it is, or copy it."""
    return cnn_study.apply(cnn_study.plan(macs=0.5))


@pytest.fixture
def snapshot() -> Callable[[nn.Module], object]:
    """Everything of a model that the library must leave as it was."""

    def take(model: nn.Module) -> object:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return (
            [(name, id(module), module.training) for name, module in model.named_modules()],
            [
                (name, id(p), p.requires_grad, p.device, p.dtype, p.grad is None, _bytes(p))
                for name, p in model.named_parameters()
            ],
            [(name, id(b), b.device, b.dtype, _bytes(b)) for name, b in model.named_buffers()],
            [
                [(kind, list(getattr(module, kind).items())) for kind in hooks]
                + [sorted(key for key in vars(module) if not key.startswith("_"))]
                for module in model.modules()
            ],
        )

    return take


def _bytes(tensor: torch.Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous()
    return data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b""


@pytest.fixture
def environment() -> Mapping[str, str]:
    """For another process: the modules that tests share, such as ``nets``, can be imported there."""
    paths = [str(_HERE), str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def python(environment: Mapping[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in another process, which has the ``environment``."""

    def call(script: str, *, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "script.py"
        file.write_text("import torch\ntorch.set_num_threads(1)\n" + script)
        done = subprocess.run(
            [sys.executable, str(file)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return call
