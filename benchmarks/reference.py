# SPDX-License-Identifier: Apache-2.0
"""AIMET on the benchmark's tasks: 2,000 labelled pictures, its own greedy selection, its own venv.

What it did is kept under ``build/aimet/runs/``; the tables of accuracy and of speed read the same runs.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.aimet.rebuild import rebuild
from benchmarks.tasks.glyphs import DATA, labelled_set
from benchmarks.tasks.networks import NETWORKS

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "build" / "aimet" / "bin" / "python"
RUNS = ROOT / "build" / "aimet" / "runs"
RATIOS = (0.75, 0.5, 0.35, 0.25)
LABELLED = 2000
# Spatial SVD has no use for 1x1 convolutions and none for Linear; AIMET's count of the MACs of a Linear over
# tokens drives it to rank 1 at every ratio, so the transformer goes by its memory metric.
SCHEMES = {
    "vgg": ("spatial_svd", "weight_svd"),
    "resnet": ("spatial_svd", "weight_svd"),
    "mobilenet": ("weight_svd",),
    "vit": ("weight_svd",),
}
METRIC = {"vit": "memory"}
IGNORED = {"vit": ["stem.0", "stem.3", "stem.6"]}
# Channel pruning takes input channels away, so the first layer has none to give.
PRUNING_RATIOS = (0.7, 0.5, 0.35)
FIRST = {"vgg": "features.0", "resnet": "conv1", "mobilenet": "stem.0", "vit": "stem.0"}
# AIMET refuses functions (relu, transpose) as they stand; its prepare_model makes modules of those it knows.
PREPARED = ("resnet", "vit")


def compressed(network: str, scheme: str) -> tuple[dict[str, Any], Path]:
    """Runs AIMET's compression at all ratios, unless that was done.

    Args:
        network: key of ``NETWORKS``.
        scheme: "spatial_svd" or "weight_svd".

    Returns:
        AIMET's results, and the folder with the networks.
    """
    folder = RUNS / f"{network}-{scheme}"
    job = _job(network, folder) | {"kind": "compress", "scheme": scheme, "ratios": list(RATIOS)}
    report = folder / "report.json"
    if not (report.exists() and _is_done(report, job)):
        _run(job, folder)
    return json.loads(report.read_text())["results"], folder


def pruned(network: str) -> tuple[dict[str, Any], Path]:
    """Runs AIMET's channel pruning at all ratios, unless that was done.

    Args:
        network: key of ``NETWORKS``.

    Returns:
        AIMET's results, and the folder with the networks.
    """
    folder = RUNS / f"{network}-channel_pruning"
    job = _job(network, folder) | {
        "kind": "compress",
        "scheme": "channel_pruning",
        "metric": "mac",
        "ratios": list(PRUNING_RATIOS),
        "ignore": [FIRST[network]],
        "prepare": network in PREPARED,
        # It may add layers that take channels away before a convolution: more can go where branches meet.
        "downsample": True,
    }
    report = folder / "report.json"
    if not (report.exists() and _is_done(report, job)):
        _run(job, folder)
    return json.loads(report.read_text())["results"], folder


def one_evaluation(network: str) -> dict[str, Any]:
    """Times one of AIMET's evaluations.

    Args:
        network: key of ``NETWORKS``.

    Returns:
        Seconds and accuracy.
    """
    folder = RUNS / f"{network}-one"
    _run(_job(network, folder) | {"kind": "one_eval"}, folder)
    results: dict[str, Any] = json.loads((folder / "report.json").read_text())["results"]
    return results


def network_at(network: str, folder: Path, ratio: float) -> nn.Module:
    """AIMET's compressed network.

    Args:
        network: key of ``NETWORKS``.
        folder: of the run.
        ratio: one of ``RATIOS``.

    Returns:
        The network, checked to give AIMET's outputs.
    """
    return rebuild(NETWORKS[network](), folder, ratio)


def _job(network: str, folder: Path) -> dict[str, Any]:
    return {
        "network": network,
        "weights": str(DATA / f"{network}.safetensors"),
        "images": str(RUNS / "labelled.npz"),
        "out": str(folder),
        "metric": METRIC.get(network, "mac"),
        "ignore": IGNORED.get(network, []),
        "threads": torch.get_num_threads(),
    }


def _is_done(report: Path, job: dict[str, Any]) -> bool:
    known = json.loads(report.read_text())
    # Paths are told by name only, and threads change the time but not what comes out.
    kinds = ("kind", "scheme", "metric", "ratios", "ignore", "prepare", "downsample")
    same = all(known["job"].get(key) == job[key] for key in kinds if key in job)
    return same and len(known["results"].get("ratios", ())) == len(job["ratios"])


def _run(job: dict[str, Any], folder: Path) -> None:
    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON} is missing; run: make aimet")
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = labelled_set(LABELLED)
    np.savez(RUNS / "labelled.npz", images=images.numpy(), labels=labels.numpy())
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            [PYTHON, ROOT / "benchmarks" / "aimet" / "run.py", path], check=True, stdout=log, stderr=log
        )
