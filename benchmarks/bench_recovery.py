# SPDX-License-Identifier: Apache-2.0
"""What training wins back after compression: with labels or without, once or after every layer.

Every way gets the same 2,000 pictures, in fonts of the training set; a fifth of them is held out as the
guard. One row per network, budget and way, in ``benchmarks/results/recovery-cpu-torch<version>.csv``.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

import slimrank as sr
from benchmarks.bench_data import divergence
from benchmarks.tables import Row, Value, context, merge_table, table_path
from benchmarks.tasks.glyphs import labelled_set
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns
from slimrank.recover import Epoch, distill, finetune

NETWORKS = ("resnet", "mobilenet")
RATIOS = (0.5, 0.35)
N_CALIBRATION = 512
N_PICTURES = 2000
EPOCHS = 5
LR = 3e-4
BATCH = 50
KEY = ("network", "ratio_asked", "way")
Pairs = Sequence[tuple[Tensor, Tensor]]
OnLayer = Callable[[nn.Module, str], object]


@dataclass(slots=True, kw_only=True)
class Trainer:
    """Trains, and keeps account of it.

    Attributes:
        pairs: pictures and labels.
        original: the network before compression.
        epochs: of the longer ways.
        runs: epochs of every call.
        seconds: of all calls.
    """

    pairs: Pairs
    original: nn.Module
    epochs: int = EPOCHS
    runs: list[list[Epoch]] = field(default_factory=list)
    seconds: float = 0.0

    def labels(self, model: nn.Module, **options: object) -> nn.Module:
        """The model fine-tuned; options as in ``finetune``."""
        return self._timed(
            lambda record: finetune(
                model,
                self.pairs,
                nn.CrossEntropyLoss(),
                on_epoch=record,
                progress=False,
                **{"lr": LR, **options},  # type: ignore[arg-type]
            )
        )

    def distilled(self, model: nn.Module, **options: object) -> nn.Module:
        """The model distilled; options as in ``distill``."""
        return self._timed(
            lambda record: distill(
                model,
                self.original,
                [images for images, _ in self.pairs],
                on_epoch=record,
                progress=False,
                **{"lr": LR, **options},  # type: ignore[arg-type]
            )
        )

    def after_layer(self, model: nn.Module, _name: str) -> None:
        """For ``on_layer``: one epoch with labels."""
        self.labels(model, in_place=True)

    def held_out(self) -> Row:
        """Loss on held-out pictures before and after the last call."""
        if not self.runs:
            return {}
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


Build = Callable[..., nn.Module]
WAYS: Mapping[str, Callable[[Trainer, Build], nn.Module]] = {
    "no training": lambda _trainer, build: build(),
    "per layer, labels": lambda trainer, build: build(on_layer=trainer.after_layer),
    "one epoch, labels": lambda trainer, build: trainer.labels(build()),
    "several epochs, labels": lambda trainer, build: trainer.labels(build(), epochs=trainer.epochs),
    "several epochs, labels, norms reestimated": lambda trainer, build: trainer.labels(
        build(), epochs=trainer.epochs, norms="reestimated"
    ),
    "several epochs, distilled": lambda trainer, build: trainer.distilled(build(), epochs=trainer.epochs),
    "per layer, then several epochs, labels": lambda trainer, build: trainer.labels(
        build(on_layer=trainer.after_layer), epochs=trainer.epochs
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
    study = sr.study(model, task.batches(N_CALIBRATION), skip=task.skip, progress=False)
    images, labels = labelled_set(n_pictures)
    pairs = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    for ratio in ratios:
        plan = study.plan(macs=task.budget(study, ratio))

        def build(plan: sr.Plan = plan, on_layer: OnLayer | None = None) -> nn.Module:
            return study.apply(plan, on_layer=on_layer).model

        for way, train in WAYS.items():
            trainer = Trainer(pairs=pairs, original=model, epochs=epochs)
            start = time.perf_counter()
            found = train(trainer, build)
            seconds = time.perf_counter() - start
            trained = bool(trainer.runs)
            row: dict[str, Value] = {
                "network": task.name,
                "ratio_asked": ratio,
                "way": way,
                **accuracy_columns(before, task.right(found)),
                "divergence_on_fresh_pictures": round(divergence(model, found, fresh), 5),
                "held_out_before": None,
                "held_out_after": None,
                **trainer.held_out(),
                "pictures": n_pictures if trained else 0,
                "labels": n_pictures if trained and "labels" in way else 0,
                "epochs_trained": sum(len(run) for run in trainer.runs),
                "seconds_training": round(trainer.seconds, 1),
                "seconds": round(seconds, 1),
            }
            yield row


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
