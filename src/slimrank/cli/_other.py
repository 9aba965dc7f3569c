# SPDX-License-Identifier: Apache-2.0
"""``slimrank demo`` and ``slimrank env``."""

import platform
from importlib.metadata import version
from pathlib import Path

import click
import torch

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import check_out
from slimrank.cli._options import quiet_option
from slimrank.cli._save import exported_facts, result_text, saved_facts
from slimrank.demo import DemoRun, run_demo
from slimrank.deploy import REPORT_FILE
from slimrank.files import Json, make_directory

# Packages whose versions a bug report needs.
_PACKAGES = ("torch", "numpy", "scipy", "safetensors", "rich", "click")


@click.command(cls=Command)
@click.option("--out", type=PATH, default=Path("slimrank-demo"), show_default=True, help="Directory.")
@click.option("--macs", type=float, default=0.5, show_default=True, help="Keep ratio of the MACs.")
@quiet_option
def demo(out: Path, macs: float, quiet: bool) -> Answer:
    """Compress the bundled network on bundled images, and export it.

    Writes OUT/model: weights, plan, manifest and report.html; and OUT/compressed.onnx. Without the packages
    that export needs, it says how to get them.
    """
    directory = make_directory(out) / "model"
    check_out(directory, overwrite=True)
    run = run_demo(directory, macs=macs, progress=not quiet)
    same = "bit for bit the same" if run.loads_equal else "DIFFERENT"
    text = (
        f"{result_text(run.result, run.measurements)}\n"
        f"Saved in {directory}; loaded again with slimrank.load, its outputs are {same}.\n"
        f"Report: {directory / REPORT_FILE}\n"
        f"{run.seconds:.0f} seconds in all.\n"
        f"{_export_text(run)}"
    )
    facts = {
        **saved_facts(run.result, directory, run.measurements),
        "exported": None if run.exported is None else exported_facts(run.exported),
        "not_exported": run.not_exported or None,
        "loads_equal": run.loads_equal,
        "wall_seconds": run.seconds,
    }
    return Answer(text=text, facts=facts, code=0 if run.loads_equal else 1)


def _export_text(run: DemoRun) -> str:
    """The exported file; or what is missing."""
    if run.exported is None:
        return f"Not exported: {run.not_exported}"
    return f"\nExported:\n{run.exported.summary()}"


@click.command(cls=Command)
def env() -> Answer:
    """Show what a bug report needs."""
    devices: list[Json] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, Json] = {
        "slimrank": sr.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": devices,
    }
    shown = {**facts, "cuda": facts["cuda"] or "none", "cuda_devices": ", ".join(map(str, devices)) or "none"}
    return Answer(text="\n".join(f"{name:<13} {value}" for name, value in shown.items()), facts=facts)
