# SPDX-License-Identifier: Apache-2.0
"""One study, plan and apply in a process of its own, timed; prints JSON. The floor beside it.

Wall seconds, and CPU seconds, which other work on the machine moves less.

python -m benchmarks.one_run resnet --images 512 --methods all --compress
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


class Clock:
    """Wall and CPU seconds since the last reading."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call, by the clock and of the CPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        lap = wall - self._wall, cpu - self._cpu
        self._wall, self._cpu = wall, cpu
        return lap


def floor_seconds(model: nn.Module, batches: Sequence[Tensor]) -> tuple[float, float]:
    """Seconds of one forward and backward over the pictures: what no method that uses gradients can beat.

    Args:
        model: in eval mode.
        batches: the pictures.

    Returns:
        Wall and CPU seconds; a first batch has warmed the model up.
    """
    model(batches[0]).square().sum().backward()
    clock = Clock()
    for batch in batches:
        model(batch).square().sum().backward()
    return clock.lap()


METHODS = {"svd": FACTORS, "all": sr.METHODS}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description="Time one compression.")
    parser.add_argument("network", choices=[*TASKS, "scaled"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--methods", choices=METHODS, default="svd", help="the two SVDs, or the default call")
    parser.add_argument("--compress", action="store_true", help="time sr.compress as well")
    parser.add_argument(
        "--depth", type=int, default=1, help="of the scaled ResNet-like: times as many blocks"
    )
    parser.add_argument(
        "--width", type=int, default=1, help="of the scaled ResNet-like: times as many channels"
    )
    args = parser.parse_args()
    task = TASKS["resnet" if args.network == "scaled" else args.network]
    model = scaled_resnet(args.depth, args.width) if args.network == "scaled" else task.model()
    batches, methods = task.batches(args.images), METHODS[args.methods]
    with torch.no_grad():
        model(batches[0])
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock()
    study = sr.study(model, batches, methods=methods, skip=task.skip, progress=False)
    studied = clock.lap()
    plan = study.plan(macs=task.budget(study, args.ratio))
    planned = clock.lap()
    result = study.apply(plan)
    applied = clock.lap()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    study.plan(macs=task.budget(study, 0.6))
    again = clock.lap()
    found = {
        "seconds": studied[0] + planned[0] + applied[0],
        "cpu": studied[1] + planned[1] + applied[1],
        "study": studied[0],
        "plan": planned[0],
        "apply": applied[0],
        "further_plan": again[0],
        "phases": dict(result.seconds),
        "peak_mb": peak / 1000,
        "macs": result.before.macs,
        "macs_counted": result.keep_ratio("macs"),
    }
    if args.compress:
        budget = task.budget(study, args.ratio)
        clock.lap()
        sr.compress(model, batches, macs=budget, methods=methods, skip=task.skip, progress=False)
        found["compress"], found["compress_cpu"] = clock.lap()
    found["floor"], found["floor_cpu"] = floor_seconds(model, batches)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
