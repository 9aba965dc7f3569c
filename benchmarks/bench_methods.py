# SPDX-License-Identifier: Apache-2.0
"""The figures of the guidebook: which method, how to combine, how many candidates, when to quantise.

Budgets 0.5 and 0.35 of the MACs, 512 unlabelled pictures; eval scores on 2,000 labelled ones. Quantisation is
simulated: weights rounded to 8 bits per output channel, as post-training quantisation does. One row per
network, budget and way, in ``benchmarks/results/methods-cpu-torch<version>.csv``.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.bench_data import divergence
from benchmarks.tables import FACTORS, Row, keep_rows
from benchmarks.tasks.glyphs import labelled_set
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns

RATIOS = (0.5, 0.35)
NETWORKS = ("vgg", "resnet")
N_IMAGES, N_LABELLED, BATCH = 512, 2000, 100
CANDIDATES = (5, 10, 20)
# Nine candidates of nineteen layers are minutes; of six layers one.
SCORED = ("vgg",)
KEY = ("network", "ratio_asked", "way")


def int8_weights(model: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to 255 levels per output channel.

    Args:
        model: any module.

    Returns:
        The copy; biases and norms stay as they are.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                flat = module.weight.flatten(1)
                step = flat.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
                module.weight.copy_((flat / step).round().mul(step).view_as(module.weight))
    return model


def _accuracy(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    def accuracy(model: nn.Module) -> float:
        right = 0
        with torch.no_grad():
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                right += int((model(x).argmax(1) == y).sum())
        return right / len(images)

    return accuracy


def rows_of(task: Task) -> Iterator[Row]:
    """Every way on one network.

    Args:
        task: the network.

    Yields:
        The rows, as they are done.
    """
    model, batches = task.model(), task.batches(N_IMAGES)
    before, fresh = task.right(model), task.batches(512, seed=99)
    score_fn = _accuracy(*labelled_set(N_LABELLED))

    def study_of(network: nn.Module) -> sr.Study:
        return sr.study(network, batches, methods=FACTORS, skip=task.skip, progress=False)

    study = study_of(model)
    tables: dict[int, sr.Scores] = {}

    def by_scores(macs: float, candidates: int) -> nn.Module:
        if candidates not in tables:
            tables[candidates] = sr.measure_scores(
                study, score_fn, methods=("spatial_svd",), candidates=candidates, progress=False
            )
        plan = study.plan(macs=macs, select="greedy", scores=tables[candidates], monotonic=True)
        return study.apply(plan).model

    def quantised_first(macs: float) -> nn.Module:
        rounded = study_of(int8_weights(model))
        return int8_weights(rounded.apply(rounded.plan(macs=macs)).model)

    ways: dict[str, Callable[[float], nn.Module]] = {
        "both methods, one plan": lambda macs: study.apply(study.plan(macs=macs)).model,
        "spatial SVD only": lambda macs: study.apply(study.plan(macs=macs, methods=("spatial_svd",))).model,
        "weight SVD only": lambda macs: study.apply(study.plan(macs=macs, methods=("weight_svd",))).model,
        "spatial, then weight SVD, best of three splits": lambda macs: (
            sr.search_split(study, macs=macs).model
        ),
        "compressed, then int8 weights": lambda macs: int8_weights(study.apply(study.plan(macs=macs)).model),
        "int8 weights, then compressed, int8 again": quantised_first,
    }
    if task.name in SCORED:
        ways |= {
            f"eval scores, {count} candidates, spatial SVD": lambda macs, count=count: by_scores(macs, count)
            for count in CANDIDATES
        }
    found = int8_weights(model)
    yield {
        "network": task.name,
        "ratio_asked": 1.0,
        "way": "int8 weights only",
        **accuracy_columns(before, task.right(found)),
        "divergence_on_fresh_pictures": round(divergence(model, found, fresh), 5),
    }
    for ratio in RATIOS:
        for way, build in ways.items():
            start = time.perf_counter()
            found = build(task.budget(study, ratio))
            seconds = time.perf_counter() - start
            yield {
                "network": task.name,
                "ratio_asked": ratio,
                "way": way,
                **accuracy_columns(before, task.right(found)),
                "divergence_on_fresh_pictures": round(divergence(model, found, fresh), 5),
                "seconds_after_study": round(seconds, 1),
            }


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Methods, combinations, candidates, quantisation.")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    args = parser.parse_args()
    for name in args.network or NETWORKS:
        keep_rows("methods", rows_of(TASKS[name]), KEY)


if __name__ == "__main__":
    main()
