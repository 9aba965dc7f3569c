# SPDX-License-Identifier: Apache-2.0
"""One large network studied, planned and applied as called by default, in a process of its own.

python benchmarks/one_scale_run.py resnet50
python benchmarks/one_scale_run.py resnet50 --samples 8 --pixels 64

Prints its row as JSON after every step, so that whoever kills it knows how far it came: the last line holds.
Wall seconds, and CPU seconds, which other work on the machine moves less.
"""

import argparse
import contextlib
import gc
import json
import math
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo
import torch.export  # both are loaded by the first count and export; imports are not timed
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import slimrank as sr
from benchmarks import resnet50, scale_nets, zoo
from benchmarks.one_run import Clock
from slimrank._progress import Phases
from slimrank.forward import named_tensors
from slimrank.records import LayerSpec

RATIO = 0.5
Value = str | int | float | None
# What AIMET evaluates in its greedy selection: nine ratios of every layer, and pictures of our other tables.
AIMET_RATIOS, AIMET_IMAGES = 9, 2000
_PRODUCT = 2048


class Row:
    """What is known so far, printed after every step.

    Attributes:
        values: column -> value.
    """

    def __init__(self, **values: Value) -> None:
        self.values: dict[str, Value] = values

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Takes the wall and CPU seconds of a step; while it runs, "failed_step" names it."""
        self.values["failed_step"] = name
        self.say()
        clock = Clock()
        yield
        wall, cpu = clock.lap()
        self.values |= {
            f"{name}_seconds": round(wall, 2),
            f"{name}_cpu_seconds": round(cpu, 2),
            "failed_step": None,
        }
        self.say()

    def begin(self, phase: str) -> None:
        """Says which phase of a step has begun."""
        step = str(self.values["failed_step"]).partition(":")[0]
        self.values["failed_step"] = f"{step}: {phase}"
        self.say()

    def say(self) -> None:
        """Prints the row."""
        print(json.dumps(self.values), flush=True)


@contextlib.contextmanager
def cpu_by_phase(on_phase: Callable[[str], None] = lambda name: None) -> Iterator[dict[str, float]]:
    """CPU seconds of the phases whose wall seconds slimrank tells, while the context lasts.

    Args:
        on_phase: called with the name of a phase when it begins.

    Yields:
        The seconds so far, by phase.
    """
    seconds: dict[str, float] = {}
    phase, part = Phases.phase, Phases.part

    @contextlib.contextmanager
    def timed_phase(self: Phases, name: str, total: int) -> Iterator[object]:
        on_phase(name)
        start = time.process_time()
        with phase(self, name, total) as advance:
            yield advance
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

    @contextlib.contextmanager
    def timed_part(self: Phases, name: str, of: str) -> Iterator[None]:
        start = time.process_time()
        with part(self, name, of):
            yield
        taken = time.process_time() - start
        seconds[name] = seconds.get(name, 0.0) + taken
        seconds[of] = seconds.get(of, 0.0) - taken

    with mock.patch.object(Phases, "phase", timed_phase), mock.patch.object(Phases, "part", timed_part):
        yield seconds


def floor(model: nn.Module, batches: Sequence[object]) -> None:
    """One forward and backward over the pictures: what no method that uses gradients can beat.

    Args:
        model: in eval mode.
        batches: of pictures.
    """
    for batch in batches:
        outputs = model(*batch) if isinstance(batch, tuple) else model(batch)
        tensors = [tensor for _, tensor in named_tensors(outputs) if tensor.requires_grad]
        torch.stack([tensor.square().sum() for tensor in tensors]).sum().backward()
        model.zero_grad()


def decomposition_flops(layers: Sequence[LayerSpec], samples: int) -> float:
    """Operations that the decompositions of the layers take, about.

    Of a layer with D input columns (C_in / groups, times the kernel) and O outputs, both for each of its
    groups, whose matrix acts on P positions of each of S samples, the moments of the inputs have the rank
    n = min(D, S P), and those of the output gradients m = min(O, S P). Eigenvalues and vectors of a symmetric
    matrix of size n take about 10 n^3 operations; where n < D, two products with the rows, 4 D n^2, lead to
    that size and back. So a layer takes

        groups * (10 n^3 + 10 m^3 + (4 D n^2 where n < D) + (4 O m^2 where m < O)).

    What is left out (weights, the search for ranks and channels, fits) is work that a method chooses to do.

    Args:
        layers: of a study; those that no method changes are left out.
        samples: S.

    Returns:
        Operations, a multiplication and an addition being two.
    """
    total = 0.0
    for spec in layers:
        if not spec.methods:
            continue
        positions = sum(math.prod(call.output_shape[1:]) for call in spec.calls) // spec.n_outputs
        for size in (math.prod(spec.weight_shape[1:]), spec.n_outputs // spec.groups):
            rank = min(size, samples * positions)
            total += spec.groups * (10 * rank**3 + (4 * size * rank**2 if rank < size else 0))
    return total


def product_rates() -> tuple[float, float]:
    """Operations a second in products of large matrices of float32: by the clock, and by the CPU."""
    left, right = torch.randn(_PRODUCT, _PRODUCT), torch.randn(_PRODUCT, _PRODUCT)
    laps = []
    torch.mm(left, right)
    for _ in range(5):
        clock = Clock()
        torch.mm(left, right)
        laps.append(clock.lap())
    flops = 2 * _PRODUCT**3
    return flops / statistics.median(lap[0] for lap in laps), flops / statistics.median(
        lap[1] for lap in laps
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _phases(wall: Mapping[str, float], cpu: Mapping[str, float]) -> dict[str, Value]:
    return {
        **{f"phase_{name}": round(seconds, 2) for name, seconds in wall.items()},
        **{f"cpu_{name}": round(seconds, 2) for name, seconds in cpu.items()},
    }


def run(row: Row, model: nn.Module, batches: Sequence[object], samples: int) -> None:
    """Fills a row.

    Args:
        row: filled.
        model: the network.
        batches: the pictures.
        samples: their number.
    """
    gc.collect()
    base = _peak_mb()
    with cpu_by_phase(row.begin) as cpu:
        with row.step("study"):
            study = sr.study(model, batches, progress=False)
        row.values |= {
            "layers": sum(1 for spec in study.layers if spec.methods),
            "macs_before": study.before.macs,
            "study_peak_mb": round(_peak_mb() - base),
            **_phases(study.seconds, cpu),
        }
        with row.step("plan"):
            plan = study.plan(macs=RATIO)
        with row.step("apply"):
            result = study.apply(plan)
    row.values |= {
        "peak_mb": round(_peak_mb() - base),
        "macs_after": result.after.macs,
        "macs_counted": round(result.keep_ratio("macs"), 4),
        "params_counted": round(result.keep_ratio("params"), 4),
        "split": len(plan.settings),
        "narrowed": len(plan.groups),
        "divergence": None if result.divergence is None else round(result.divergence, 5),
        "damage": None if result.damage is None else round(result.damage, 5),
        "unit": result.unit,
        **_phases(result.seconds, cpu),
    }
    del result, plan
    floor(model, batches[:1])
    with row.step("floor"):
        floor(model, batches)
    rate, cpu_rate = product_rates()
    flops = decomposition_flops(study.layers, samples)
    wall, cpu_all = (
        sum(float(row.values[f"{step}{kind}"] or 0) for step in ("study", "plan", "apply"))
        for kind in ("_seconds", "_cpu_seconds")
    )
    floors = float(row.values["floor_seconds"] or 0), float(row.values["floor_cpu_seconds"] or 0)
    row.values |= {
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu_all, 1),
        "times_floor": round(wall / floors[0], 2),
        "times_floor_cpu": round(cpu_all / floors[1], 2),
        "product_gflops": round(rate / 1e9, 1),
        "decomposition_gflop": round(flops / 1e9, 1),
        "decomposition_seconds": round(flops / rate, 2),
        "decomposition_cpu_seconds": round(flops / cpu_rate, 2),
        "times_floor_and_decompositions": round(wall / (floors[0] + flops / rate), 2),
        "times_floor_and_decompositions_cpu": round(cpu_all / (floors[1] + flops / cpu_rate), 2),
    }
    row.say()


def estimate_aimet(row: Row, model: nn.Module, batches: Sequence[object]) -> None:
    """AIMET's time: its evaluations, times its pictures, times the measured seconds of a forward."""
    clock = Clock()
    with torch.no_grad():
        images = sum(len(model(batch)) for batch in batches[:4])
    seconds = AIMET_RATIOS * int(row.values["layers"] or 0) * AIMET_IMAGES * clock.lap()[0] / images
    row.values |= {
        "aimet_evaluations": AIMET_RATIOS * int(row.values["layers"] or 0),
        "aimet_seconds_estimated": round(seconds),
        "times_faster_estimated": round(seconds / float(row.values["seconds"] or 0), 1),
    }


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=scale_nets.NETS)
    parser.add_argument("--samples", type=int, default=scale_nets.SAMPLES)
    parser.add_argument("--pixels", type=int, default=scale_nets.PIXELS)
    parser.add_argument("--batch", type=int, default=scale_nets.BATCH)
    parser.add_argument("--memory-gb", type=int, default=20, help="more than that is an error")
    args = parser.parse_args()
    # One network must not bring the machine to its knees.
    resource.setrlimit(resource.RLIMIT_DATA, (args.memory_gb * 2**30,) * 2)
    warnings.filterwarnings("ignore")
    zoo.stand_in_for_torchvision()
    model = scale_nets.build(args.network, args.pixels)
    batches = resnet50.batches(args.samples, args.pixels, args.batch)
    row = Row(network=args.network, samples=args.samples, pixels=args.pixels, batch=args.batch)
    row.values["params_before"] = sum(parameter.numel() for parameter in model.parameters())
    run(row, model, batches, args.samples)
    if args.network == "resnet50":
        estimate_aimet(row, model, batches)
    row.say()


if __name__ == "__main__":
    main()
