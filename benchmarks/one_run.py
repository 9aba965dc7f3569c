# SPDX-License-Identifier: Apache-2.0
"""One study, plan and apply in a process of its own, timed; prints JSON. The floor beside it.

python -m benchmarks.one_run resnet --images 512
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence

import torch
import torch._dynamo
import torch.export  # both are loaded by the first count and export; imports are not timed
from torch import Tensor, nn

import slimrank as sr
from benchmarks.tables import FACTORS
from benchmarks.tasks.networks import scaled_resnet
from benchmarks.tasks.tasks import TASKS


def floor_seconds(model: nn.Module, batches: Sequence[Tensor]) -> float:
    """Seconds of one forward and backward over the pictures: what no method that uses gradients can beat.

    Args:
        model: in eval mode.
        batches: the pictures.

    Returns:
        Seconds; a first batch has warmed the model up.
    """
    model(batches[0]).square().sum().backward()
    start = time.perf_counter()
    for batch in batches:
        model(batch).square().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description="Time one compression.")
    parser.add_argument("network", choices=[*TASKS, "scaled"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument(
        "--depth", type=int, default=1, help="of the scaled ResNet-like: times as many blocks"
    )
    parser.add_argument(
        "--width", type=int, default=1, help="of the scaled ResNet-like: times as many channels"
    )
    args = parser.parse_args()
    task = TASKS["resnet" if args.network == "scaled" else args.network]
    model = scaled_resnet(args.depth, args.width) if args.network == "scaled" else task.model()
    batches = task.batches(args.images)
    with torch.no_grad():
        model(batches[0])
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    study = sr.study(model, batches, methods=FACTORS, skip=task.skip, progress=False)
    studied = time.perf_counter()
    plan = study.plan(macs=task.budget(study, args.ratio))
    planned = time.perf_counter()
    result = study.apply(plan)
    applied = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    study.plan(macs=task.budget(study, 0.6))
    again = time.perf_counter()
    print(
        json.dumps(
            {
                "seconds": applied - start,
                "study": studied - start,
                "plan": planned - studied,
                "apply": applied - planned,
                "further_plan": again - applied,
                "phases": dict(result.seconds),
                "floor": floor_seconds(model, batches),
                "peak_mb": peak / 1000,
                "macs": result.before.macs,
                "macs_counted": result.keep_ratio("macs"),
            }
        )
    )


if __name__ == "__main__":
    main()
