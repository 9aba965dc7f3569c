# SPDX-License-Identifier: Apache-2.0
"""How long do study, plan and apply take on a CUDA GPU, and how long on the CPU of the same machine?

Two networks of the benchmark with 512 pictures and one of the size of ResNet-50 with smooth random pictures,
as called by default, half of the MACs; each on each device in a process of its own, once, after a first
forward and a first decomposition. One row per network and device in
``benchmarks/results/gpu-<device>-torch<version>.csv``. ``gpu.sh`` runs it.

python -m benchmarks.bench_gpu
python -m benchmarks.bench_gpu --device cpu --network resnet --samples 64 --table trial.csv
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks import resnet50
from benchmarks.one_run import Clock, floor_seconds
from benchmarks.tables import RESULTS, Row, context, merge_table
from benchmarks.tasks.tasks import TASKS

ROOT = Path(__file__).parents[1]
RATIO = 0.5
BIG = "resnet50-sized"
NETWORKS = ("resnet", "vit", BIG)
# Of the small networks and of the big one.
SAMPLES, BIG_SAMPLES, BIG_PIXELS, BIG_BATCH = 512, 64, 128, 16
LIMIT_SECONDS = 150


def table_of(torch_version: str) -> Path:
    """Where the table of this machine's GPU lies.

    Args:
        torch_version: as torch tells it.

    Returns:
        ``results/gpu-DEVICE-torchVERSION.csv``.

    Raises:
        SystemExit: torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch_version} sees no CUDA device; install a torch with CUDA on a machine with a GPU, "
            "or give --device cpu --table FILE for a trial"
        )
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return RESULTS / f"gpu-{name}-torch{torch_version.partition('+')[0]}.csv"


def run_one(network: str, device: str, samples: int | None, pixels: int) -> Row:
    """One network on one device, in this process.

    Args:
        network: one of ``NETWORKS``.
        device: "cuda" or "cpu".
        samples: pictures; None for as many as the table has.
        pixels: of the big network's pictures.

    Returns:
        What its row tells of it.
    """
    if network == BIG:
        model, skip = resnet50.build(), ()
        batches: Sequence[Tensor] = resnet50.batches(samples or BIG_SAMPLES, pixels, BIG_BATCH)
    else:
        task = TASKS[network]
        model, batches, skip = task.model(), task.batches(samples or SAMPLES), task.skip
    model, batches = model.to(device), [batch.to(device) for batch in batches]
    _warm_up(model, batches[0])
    is_cuda = device == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated() if is_cuda else 0
    clock = Clock()
    study = sr.study(model, batches, skip=skip, progress=False)
    studied = _lap(clock, is_cuda)
    plan = study.plan(macs=RATIO if network == BIG else TASKS[network].budget(study, RATIO))
    planned = _lap(clock, is_cuda)
    result = study.apply(plan)
    applied = _lap(clock, is_cuda)
    peak = torch.cuda.max_memory_allocated() - base if is_cuda else None
    floor_seconds(model, batches)
    _lap(clock, is_cuda)
    floor_seconds(model, batches)
    floor = _lap(clock, is_cuda)
    steps = {"study": studied, "plan": planned, "apply": applied, "floor": floor}
    seconds = studied[0] + planned[0] + applied[0]
    return {
        "samples": sum(len(batch) for batch in batches),
        "pixels": batches[0].shape[-1],
        "macs_before": result.before.macs,
        "macs_counted": round(result.keep_ratio("macs"), 4),
        "divergence": None if result.divergence is None else round(result.divergence, 5),
        "unit": result.unit,
        "seconds": round(seconds, 2),
        **{f"{step}_seconds": round(lap[0], 3) for step, lap in steps.items()},
        **{f"{step}_cpu_seconds": round(lap[1], 3) for step, lap in steps.items()},
        "times_floor": round(seconds / floor[0], 1),
        "peak_cuda_mb": None if peak is None else round(peak / 1e6),
        **{f"phase_{phase}": round(lap, 2) for phase, lap in result.seconds.items()},
    }


def _warm_up(model: nn.Module, batch: Tensor) -> None:
    """What is loaded by the first call alone: kernels, and the libraries of decompositions."""
    with torch.no_grad():
        model(batch)
    square = torch.eye(64, dtype=torch.float64, device=batch.device)
    torch.linalg.eigh(square)
    torch.linalg.svd(square)
    torch.linalg.cholesky(square)
    _synchronize(batch.is_cuda)


def _synchronize(is_cuda: bool) -> None:
    if is_cuda:
        torch.cuda.synchronize()


def _lap(clock: Clock, is_cuda: bool) -> tuple[float, float]:
    """Wall and CPU seconds, what the GPU still had to do included."""
    _synchronize(is_cuda)
    return clock.lap()


def main() -> None:
    """Runs what is asked for; a row is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--device", choices=("cuda", "cpu"), action="append")
    parser.add_argument("--samples", type=int, help="fewer pictures, for a trial")
    parser.add_argument("--pixels", type=int, default=BIG_PIXELS, help="of the big network's pictures")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds for one row")
    parser.add_argument("--table", type=Path, help="another file, for a trial")
    parser.add_argument(
        "--here", action="store_true", help="one network, one device, in this process; prints"
    )
    args = parser.parse_args()
    networks, devices = args.network or NETWORKS, args.device or ("cuda", "cpu")
    if args.here:
        print(json.dumps(run_one(networks[0], devices[0], args.samples, args.pixels)))
        return
    if "cuda" in devices or args.table is None:
        path = table_of(torch.__version__)
    path = args.table or path
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    options = ["--pixels", str(args.pixels), *(["--samples", str(args.samples)] if args.samples else [])]
    for network in networks:
        for device in devices:
            row: Row = {"network": network, "device": device, "gpu": gpu, "note": None}
            row = {**row, **_ask(["--network", network, "--device", device, *options], args.limit)}
            row = {**row, "cuda": torch.version.cuda, **context()}
            print({column: value for column, value in row.items() if value not in (None, "")}, flush=True)
            merge_table(path, [row], ("network", "device"))
    print(path)


def _ask(arguments: Sequence[str], limit: int) -> Row:
    """A row from a process of its own; "note" says why there is none."""
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--here", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"note": f"not done in {limit} s"}
    if done.returncode:
        return {"note": f"exit {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])[:250]}"}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
