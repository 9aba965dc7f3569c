# SPDX-License-Identifier: Apache-2.0
"""What was tried to lose less: each idea alone, on the same plan, with what it brings on fresh pictures.

What helps is in slimrank and is taken out here; what does not is not, and is put in here. One row per network
and idea, in ``benchmarks/results/ablation-cpu-torch<version>.csv``.
"""

import argparse
import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.bench_data import divergence
from benchmarks.tables import FACTORS, Row, keep_rows
from benchmarks.tasks.tasks import TASKS, Task, paired_interval
from slimrank.capture import Epilogue
from slimrank.fitting._seen import Seen
from slimrank.forward import Batch, as_batch
from slimrank.plan import damage_at
from slimrank.recover._norms import reestimate_

RATIOS = {"vgg": 0.25, "resnet": 0.35, "mobilenet": 0.35, "vit": 0.35}
N_IMAGES = 512
N_PLANS = 6
N_ROUNDS, N_CORRECTED, LOWERED = 2, 6, 0.8


def _only(**kept: bool) -> Callable[..., Mapping[str, Epilogue]]:
    """``Seen.epilogues`` that knows of a part only."""
    whole = Seen.epilogues

    def find(seen: Seen, batches: Sequence[Batch]) -> Mapping[str, Epilogue]:
        epilogues = whole(seen, batches)
        if not kept.get("clipping", False):
            return {name: dataclasses.replace(epilogue, bounds=None) for name, epilogue in epilogues.items()}
        return {name: epilogue for name, epilogue in epilogues.items() if epilogue.shortcut is None}

    return find


PATCHES: dict[str, dict[str, object]] = {
    "as it is": {},
    "knows neither shortcut nor clipping": {"slimrank.fitting._seen.Seen.epilogues": lambda *_: {}},
    "knows the shortcut only": {"slimrank.fitting._seen.Seen.epilogues": _only()},
    "knows the clipping only": {"slimrank.fitting._seen.Seen.epilogues": _only(clipping=True)},
    "no alternating refinement": {"slimrank.fitting._fit.ALTERNATIONS": 0},
    "12 rounds of alternating refinement": {"slimrank.fitting._fit.ALTERNATIONS": 12},
    "four times the rows": {
        "slimrank.cost._rows._MAX_ROWS_PER_COLUMN": 80,
        "slimrank.cost._rows._MIN_ROWS": 65536,
    },
    "G shrunk by 0.01": {"slimrank.methods._target._GRADIENT_SHRINK": 0.01},
    "G shrunk by 1": {"slimrank.methods._target._GRADIENT_SHRINK": 1.0},
    "one ridge, not chosen on held-out rows": {"slimrank.fitting._goals._RIDGES": ()},
}


def _with_patches(patches: Mapping[str, object], build: Callable[[], sr.Result]) -> sr.Result:
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        return build()


def _best_of_plans(study: sr.Study, macs: float) -> sr.Result:
    """Plans from damages that are off by a random factor a layer; the build with the least divergence."""
    rng = np.random.default_rng(0)
    results = [study.apply(study.plan(macs=macs))]
    for _ in range(N_PLANS - 1):
        factors = {spec.name: np.exp(0.4 * rng.standard_normal()) for spec in study.layers}
        curves = tuple(
            dataclasses.replace(curve, damage=curve.damage * factors[curve.layer]) for curve in study.curves
        )
        results.append(study.apply(dataclasses.replace(study, curves=curves).plan(macs=macs)))
    return min(results, key=lambda result: result.divergence or 0.0)


def _interaction_corrected(study: sr.Study, macs: float) -> sr.Result:
    """Damages scaled by what the costliest layers are seen to cost within the plan; kept where that helps.

    Each of these layers is built at a lower rank with all others as planned, and its damage is
    multiplied by measured / predicted rise of the divergence, within a factor of three.
    """
    factors: dict[str, float] = {}

    def planned() -> sr.Plan:
        curves = tuple(
            dataclasses.replace(curve, damage=curve.damage * factors.get(curve.layer, 1.0))
            for curve in study.curves
        )
        return dataclasses.replace(study, curves=curves).plan(macs=macs)

    best = study.apply(planned())
    for _ in range(N_ROUNDS):
        plan, start = best.plan, best.divergence or 0.0
        damages = {layer.name: layer.damage or 0.0 for layer in best.layers if layer.setting is not None}
        for name in sorted(damages, key=lambda name: -damages[name])[:N_CORRECTED]:
            setting = plan.settings[name]
            lower = dataclasses.replace(setting, rank=max(1, int(LOWERED * setting.rank)))
            rise = damage_at(study.curves, name, lower)
            if lower.rank == setting.rank or rise is None or rise <= damages[name]:
                continue
            measured = (study.apply(plan.replace(name, lower)).divergence or 0.0) - start
            factors[name] = float(np.clip(measured / (rise - damages[name]), 1 / 3, 3))
        found = study.apply(planned())
        if (found.divergence or 0.0) >= start:
            break
        best = found
    return best


def _norms_again(model: nn.Module, images: Tensor) -> nn.Module:
    """Batch-norm statistics from the calibration pictures, in the compressed network."""
    model = copy.deepcopy(model)
    reestimate_(model, [as_batch(batch) for batch in images.split(64)])
    return model


def rows_of(task: Task) -> Iterator[Row]:
    """Every idea on one network.

    Args:
        task: the network.

    Yields:
        The rows, as they are done.
    """
    model, batches = task.model(), task.batches(N_IMAGES)
    before, fresh, ratio = task.right(model), task.batches(512, seed=99), RATIOS[task.name]
    study = sr.study(model, batches, methods=FACTORS, skip=task.skip, progress=False)
    macs = task.budget(study, ratio)
    plan = study.plan(macs=macs)
    images = torch.cat(batches)

    def row(idea: str, found: nn.Module, seconds: float) -> Row:
        after = task.right(found)
        lost, interval = paired_interval(before, after)
        return {
            "network": task.name,
            "ratio_asked": ratio,
            "idea": idea,
            "points_lost": round(lost, 2),
            "interval_95": round(interval, 2),
            "divergence_on_fresh_pictures": round(divergence(model, found, fresh), 5),
            "seconds": round(seconds, 1),
        }

    built = study.apply(plan).model

    def distilled(epochs: int) -> nn.Module:
        return sr.distill(built, model, batches, epochs=epochs, lr=3e-4, progress=False)

    later: dict[str, Callable[[], nn.Module]] = {
        f"best of {N_PLANS} plans by held-out divergence": lambda: _best_of_plans(study, macs).model,
        "interaction correction": lambda: _interaction_corrected(study, macs).model,
        "batch norms estimated again": lambda: _norms_again(built, images),
        "distilled for 5 epochs (training, guarded)": lambda: distilled(5),
        "distilled for 15 epochs (training, guarded)": lambda: distilled(15),
    }
    ideas = {
        name: lambda patches=patches: _with_patches(patches, lambda: study.apply(plan)).model
        for name, patches in PATCHES.items()
    }
    for idea, build in {**ideas, **later}.items():
        start = time.perf_counter()
        found = build()
        yield row(idea, found, time.perf_counter() - start)


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Each idea alone.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    args = parser.parse_args()
    for name in args.network or sorted(TASKS):
        keep_rows("ablation", rows_of(TASKS[name]), ("network", "idea"))


if __name__ == "__main__":
    main()
