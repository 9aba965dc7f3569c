# SPDX-License-Identifier: Apache-2.0
"""AIMET's own procedure done by slimrank, in a process of its own, timed; prints JSON.

Study, eval-score table on labelled pictures, greedy plan, apply::

    python -m benchmarks.one_score_run resnet --method spatial_svd
"""

import argparse
import json
import time

import torch
import torch._dynamo
import torch.export  # both are loaded by the first count and export; imports are not timed
from torch import nn

import slimrank as sr
from benchmarks.tasks.glyphs import labelled_set
from benchmarks.tasks.tasks import TASKS

BATCH = 100


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description="Time one compression by eval scores.")
    parser.add_argument("network", choices=sorted(TASKS))
    parser.add_argument("--method", choices=sr.METHODS, required=True)
    parser.add_argument("--images", type=int, default=512, help="unlabelled, for the fits")
    parser.add_argument("--labelled", type=int, default=2000)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--no-prefix-cache", action="store_true")
    parser.add_argument("--test", action="store_true", help="also the accuracy on the test pictures")
    args = parser.parse_args()
    task = TASKS[args.network]
    model, batches = task.model(), task.batches(args.images)
    images, labels = labelled_set(args.labelled)
    evaluations = 0

    def accuracy(model: nn.Module) -> float:
        nonlocal evaluations
        evaluations += 1
        right = 0
        with torch.no_grad():
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                right += int((model(x).argmax(1) == y).sum())
        return right / len(images)

    with torch.no_grad():
        model(batches[0])
    start = time.perf_counter()
    study = sr.study(model, batches, methods=(args.method,), skip=task.skip, progress=False)
    studied = time.perf_counter()
    cache = {"prefix_cache": 0} if args.no_prefix_cache else {}
    scores = sr.measure_scores(study, accuracy, progress=False, **cache)
    scored = time.perf_counter()
    plan = study.plan(macs=task.budget(study, args.ratio), select="greedy", scores=scores, monotonic=True)
    result = study.apply(plan)
    applied = time.perf_counter()
    found = {
        "seconds": applied - start,
        "study": studied - start,
        "scores": scored - studied,
        "apply": applied - scored,
        "evaluations": evaluations,
        "macs_counted": result.keep_ratio("macs"),
    }
    if args.test:
        before, after = task.right(model), task.right(result.model)
        found["points_lost"] = 100 * float(before.double().mean() - after.double().mean())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
