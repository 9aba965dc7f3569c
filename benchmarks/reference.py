# SPDX-License-Identifier: Apache-2.0
"""AIMET on the benchmark's tasks: 2,000 labelled pictures, its own greedy selection, its own venv.

What it did is kept under ``build/aimet/runs/``; the tables of accuracy and of speed read the same runs.
"""

import json
import subprocess
from dataclasses import dataclass
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
# AIMET's recipe of two steps, in the order of its documentation: spatial SVD to this share of the MACs, then
# channel pruning of what came out, to half of the original's. Where spatial SVD has nothing to split (1x1
# convolutions, Linear), AIMET's channel pruning fails as well.
BOTH = ("vgg", "resnet")
BOTH_FIRST, BOTH_TOTAL = 0.75, 0.5
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
    return _report_of(job, folder), folder


def pruned(network: str) -> tuple[dict[str, Any], Path]:
    """Runs AIMET's channel pruning at all ratios, unless that was done.

    Args:
        network: key of ``NETWORKS``.

    Returns:
        AIMET's results, and the folder with the networks.
    """
    folder = RUNS / f"{network}-channel_pruning"
    job = _pruning_job(network, folder) | {"ratios": list(PRUNING_RATIOS)}
    return _report_of(job, folder), folder


def spent(results: dict[str, Any], ratio: float) -> tuple[float, int]:
    """What a run needed for one of its ratios, the score table included.

    Args:
        results: of a run.
        ratio: one of its ratios, at which AIMET did not fail.

    Returns:
        Seconds and evaluations.
    """
    entry = next(entry for entry in results["ratios"] if entry["ratio"] == ratio)
    seconds, evaluations = entry["seconds"], entry["evaluations"]
    if not entry["evaluations_table"]:
        # The table of an earlier ratio was used again.
        seconds, evaluations = seconds + results["seconds_table"], evaluations + results["evaluations_table"]
    return seconds, evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """What became of spatial SVD followed by channel pruning.

    Attributes:
        seconds: of both steps, score tables included.
        evaluations: of both steps.
        first_seconds: of spatial SVD alone.
        second_ratio: that channel pruning was asked for, of what spatial SVD left.
        network: the result; None after an error.
        error: None, or the last line of what AIMET raised.
    """

    seconds: float
    evaluations: int
    first_seconds: float
    second_ratio: float
    network: nn.Module | None
    error: str | None


def both(network: str) -> Both:
    """Runs AIMET's spatial SVD and then its channel pruning, unless that was done.

    Args:
        network: one of ``BOTH``.

    Returns:
        What became of it, at ``BOTH_TOTAL`` of the MACs.

    Raises:
        ValueError: spatial SVD left no more than ``BOTH_TOTAL``.
    """
    first, first_folder = compressed(network, "spatial_svd")
    entry = next(entry for entry in first["ratios"] if entry["ratio"] == BOTH_FIRST)
    ratio = round(BOTH_TOTAL / entry["reported_mac_ratio"], 4)
    if ratio >= 1:
        raise ValueError(
            f"{network}: spatial SVD at {BOTH_FIRST} left {entry['reported_mac_ratio']} of the MACs; "
            f"channel pruning needs more than {BOTH_TOTAL}"
        )
    folder = RUNS / f"{network}-both"
    job = _pruning_job(network, folder) | {
        "ratios": [ratio],
        "start": str(first_folder),
        "start_ratio": BOTH_FIRST,
    }
    results = _report_of(job, folder)
    (second,) = results["ratios"]
    seconds, evaluations = spent(first, BOTH_FIRST)
    error = second["error"] and second["error"].strip().splitlines()[-1]
    return Both(
        seconds=seconds + second["seconds"],
        evaluations=evaluations + second["evaluations"],
        first_seconds=seconds,
        second_ratio=ratio,
        network=None if error else rebuild(network_at(network, first_folder, BOTH_FIRST), folder, ratio),
        error=error,
    )


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


def _pruning_job(network: str, folder: Path) -> dict[str, Any]:
    return _job(network, folder) | {
        "kind": "compress",
        "scheme": "channel_pruning",
        "metric": "mac",
        "ignore": [FIRST[network]],
        "prepare": network in PREPARED,
        # It may add layers that take channels away before a convolution: more can go where branches meet.
        "downsample": True,
    }


def _report_of(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a job found, run unless that was done."""
    report = folder / "report.json"
    if not (report.exists() and _is_done(report, job)):
        _run(job, folder)
    results: dict[str, Any] = json.loads(report.read_text())["results"]
    return results


def _is_done(report: Path, job: dict[str, Any]) -> bool:
    known = json.loads(report.read_text())
    # Paths are told by name only, and threads change the time but not what comes out.
    kinds = ("kind", "scheme", "metric", "ratios", "ignore", "prepare", "downsample", "start_ratio")
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
