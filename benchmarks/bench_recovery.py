# SPDX-License-Identifier: Apache-2.0
"""What training wins back after compression: with labels or without, once or after every layer.

Every way gets the same 1,000 pictures, in fonts of the training set; a fifth of them is held out as the
guard. One row per network, budget and way, in ``benchmarks/results/recovery-cpu-torch<version>.csv``.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

import slimrank as sr
from benchmarks.bench_data import divergence
from benchmarks.tables import FACTORS, Row, context, merge_table, table_path
from benchmarks.tasks.glyphs import labelled_set
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns
from slimrank.recover import Epoch

NETWORKS = ("resnet", "mobilenet")
RATIOS = (0.5, 0.35)
N_CALIBRATION = 512
N_PICTURES = 1000
EPOCHS = 5
# Of 1e-4 and 3e-4 the one with the lower held-out loss on the ResNet-like network at 0.35.
LR = 1e-4
BATCH = 50
KEY = ("network", "ratio_asked", "way")
Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True, kw_only=True)
class Trainer:
    """Builds and trains one network, and keeps account of it.

    Attributes:
        study: of the network.
        original: the network before compression.
        plan: what to build.
        pairs: pictures and labels.
        epochs: of the longer ways.
        runs: epochs of every training so far.
        seconds: of all trainings so far.
    """

    study: sr.Study
    original: nn.Module
    plan: sr.Plan
    pairs: Pairs
    epochs: int
    runs: list[list[Epoch]] = field(default_factory=list)
    seconds: float = 0.0

    def build(self, on_layer: Callable[[nn.Module, str], object] | None = None) -> nn.Module:
        """The compressed network."""
        return self.study.apply(self.plan, on_layer=on_layer).model

    def tune(self, model: nn.Module, **options: object) -> nn.Module:
        """The model fine-tuned; options as in ``finetune``."""
        return self._timed(
            lambda record: sr.finetune(
                model,
                self.pairs,
                nn.CrossEntropyLoss(),
                on_epoch=record,
                progress=False,
                **{"lr": LR, **options},  # type: ignore[arg-type]
            )
        )

    def teach(self, model: nn.Module, **options: object) -> nn.Module:
        """The model distilled; options as in ``distill``."""
        return self._timed(
            lambda record: sr.distill(
                model,
                self.original,
                [images for images, _ in self.pairs],
                on_epoch=record,
                progress=False,
                **{"lr": LR, **options},  # type: ignore[arg-type]
            )
        )

    def tune_by_layer(self) -> nn.Module:
        """The compressed network, fine-tuned for one epoch after every layer."""
        return self.build(lambda model, _name: self.tune(model, in_place=True))

    def held_out(self) -> Row:
        """Loss on held-out pictures before and after the last training."""
        if not self.runs:
            return {"held_out_before": None, "held_out_after": None}
        last = self.runs[-1]
        before = last[0].held_out_before
        after = min(before, *(epoch.held_out_loss for epoch in last))
        return {"held_out_before": round(before, 5), "held_out_after": round(after, 5)}

    def _timed(self, run: Callable[[Callable[[Epoch], None]], nn.Module]) -> nn.Module:
        self.runs.append([])
        start = time.perf_counter()
        model = run(self.runs[-1].append)
        self.seconds += time.perf_counter() - start
        return model


# How a network is built, and how it is trained then; what several rows build is built once.
BUILDS: Mapping[str, Callable[[Trainer], nn.Module]] = {
    "plain": lambda trainer: trainer.build(),
    "with a hook": lambda trainer: trainer.build(lambda _model, _name: None),
    "per layer": lambda trainer: trainer.tune_by_layer(),
}
WAYS: Mapping[str, tuple[str, Callable[[Trainer, nn.Module], nn.Module]]] = {
    "no training": ("plain", lambda _trainer, model: model),
    # With on_layer nothing is made up for in the layers that follow; this row tells what that costs.
    "no training, on_layer that does nothing": ("with a hook", lambda _trainer, model: model),
    "per layer, labels": ("per layer", lambda _trainer, model: model),
    "one epoch, labels": ("plain", lambda trainer, model: trainer.tune(model)),
    "several epochs, labels": ("plain", lambda trainer, model: trainer.tune(model, epochs=trainer.epochs)),
    "several epochs, labels, norms reestimated": (
        "plain",
        lambda trainer, model: trainer.tune(model, epochs=trainer.epochs, norms="reestimated"),
    ),
    "several epochs, distilled": (
        "plain",
        lambda trainer, model: trainer.teach(model, epochs=trainer.epochs),
    ),
    "per layer, then several epochs, labels": (
        "per layer",
        lambda trainer, model: trainer.tune(model, epochs=trainer.epochs),
    ),
}


def rows_of(task: Task, n_pictures: int, epochs: int, ratios: Sequence[float]) -> Iterator[Row]:
    """Every row of one network.

    Args:
        task: the network.
        n_pictures: to train on, the held-out ones included.
        epochs: of the longer ways.
        ratios: budgets, of the MACs.

    Yields:
        The rows, as they are done.
    """
    model = task.model()
    before, fresh = task.right(model), task.batches(512, seed=99)
    study = sr.study(model, task.batches(N_CALIBRATION), methods=FACTORS, skip=task.skip, progress=False)
    images, labels = labelled_set(n_pictures)
    pairs = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    for ratio in ratios:
        plan = study.plan(macs=task.budget(study, ratio))
        built: dict[str, tuple[Trainer, nn.Module, float]] = {}
        for way, (kind, train) in WAYS.items():
            if kind not in built:
                builder = Trainer(study=study, original=model, plan=plan, pairs=pairs, epochs=epochs)
                start = time.perf_counter()
                built[kind] = (builder, BUILDS[kind](builder), time.perf_counter() - start)
            builder, found, seconds = built[kind]
            trainer = dataclasses.replace(builder, runs=list(builder.runs))
            start = time.perf_counter()
            found = train(trainer, found)
            seconds += time.perf_counter() - start
            yield {
                "network": task.name,
                "ratio_asked": ratio,
                "way": way,
                **accuracy_columns(before, task.right(found)),
                "divergence_on_fresh_pictures": round(divergence(model, found, fresh), 5),
                **trainer.held_out(),
                "pictures": n_pictures if trainer.runs else 0,
                "labels": n_pictures if trainer.runs and "labels" in way else 0,
                "epochs_trained": sum(len(run) for run in trainer.runs),
                "seconds_training": round(trainer.seconds, 1),
                "seconds": round(seconds, 1),
            }


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="What training wins back.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--ratio", type=float, action="append", help="keep ratio of the MACs")
    parser.add_argument("--pictures", type=int, default=N_PICTURES, help="at most 2048")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the longer ways")
    parser.add_argument("--dry", action="store_true", help="print the rows and write nothing")
    args = parser.parse_args()
    for name in args.network or NETWORKS:
        rows = []
        for row in rows_of(TASKS[name], args.pictures, args.epochs, args.ratio or RATIOS):
            rows.append({**row, **context()})
            print({key: value for key, value in row.items() if value is not None}, flush=True)
        if not args.dry:
            merge_table(table_path("recovery"), rows, KEY)


if __name__ == "__main__":
    main()
