# SPDX-License-Identifier: Apache-2.0
"""Accuracy without labels or training on a pretrained text encoder, MiniLM, and 16 topics of texts.

512 unlabelled texts; ratios are of the MACs of the encoder's Linear layers. One row per budget and way, in
``benchmarks/results/text-cpu-torch<version>.csv``.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

import slimrank as sr
from benchmarks.tables import FACTORS, Row, context, merge_table, table_path
from benchmarks.tasks.tasks import Task, accuracy_columns
from benchmarks.tasks.text import TextClassifier, calibration_batches, embed, labelled_texts, text_model

RATIOS = (0.75, 0.5, 0.35)
N_TEXTS = 512
KEY = ("network", "ratio_asked", "way")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How ranks are chosen and layers fitted.

    Attributes:
        study: options of the study.
        select: how the plan chooses ranks.
        sequential: fit to the inputs of the compressed model.
    """

    study: Mapping[str, bool] = field(default_factory=dict)
    select: Literal["optimal", "greedy", "uniform"] = "optimal"
    sequential: bool = True


WAYS = {
    "optimal": Way(),
    "independent fits": Way(sequential=False),
    "without G": Way(study={"fisher": False}),
    "greedy": Way(select="greedy"),
    "uniform": Way(select="uniform"),
    "data-free": Way(study={"data_free": True}),
    "data-free, uniform": Way(study={"data_free": True}, select="uniform"),
}
# Only its way of counting budgets is used: of the layers that are not skipped.
TASK = Task(name="minilm", skip=("head",))


def examine(model: TextClassifier) -> tuple[Tensor, Tensor]:
    """Answers and embeddings on the test texts.

    Args:
        model: the classifier or what became of it.

    Returns:
        (1600,) bool, right answers, and (1600, 384).
    """
    texts, labels = labelled_texts("test")
    embeddings = embed(model, texts)
    with torch.inference_mode():
        return model.head(embeddings).argmax(1).eq(labels), embeddings


def rows(count: int, ratios: Sequence[float], names: Sequence[str]) -> Iterator[Row]:
    """Every row.

    Args:
        count: unlabelled texts.
        ratios: of the encoder's MACs.
        names: of ``WAYS``.

    Yields:
        The rows, as they are done.
    """
    model, batches = text_model(), calibration_batches(count)
    right, embeddings = examine(model)
    studies: dict[str, tuple[sr.Study, float]] = {}
    for name in names:
        way = WAYS[name]
        kind = str(way.study)
        if kind not in studies:
            start = time.perf_counter()
            study = sr.study(model, batches, methods=FACTORS, skip=TASK.skip, progress=False, **way.study)
            studies[kind] = study, time.perf_counter() - start
        study, seconds = studies[kind]
        for ratio in ratios:
            start = time.perf_counter()
            plan = study.plan(macs=TASK.budget(study, ratio), select=way.select)
            result = study.apply(plan, sequential=way.sequential)
            seconds_here = seconds + time.perf_counter() - start
            right_after, embeddings_after = examine(result.model)
            open_macs = sum(spec.macs for spec in study.layers if spec.methods)
            yield {
                "network": TASK.name,
                "ratio_asked": ratio,
                "way": name,
                "macs_counted": round(result.keep_ratio("macs"), 4),
                "encoder_macs_counted": round(1 - (result.before.macs - result.after.macs) / open_macs, 4),
                "params_counted": round(result.keep_ratio("params"), 4),
                **accuracy_columns(right, right_after),
                "cosine": round(float(torch.cosine_similarity(embeddings, embeddings_after).mean()), 4),
                "divergence": None if result.divergence is None else round(result.divergence, 5),
                "damage_predicted": None if result.damage is None else round(result.damage, 5),
                "unlabelled_texts": 0 if "data_free" in way.study else count,
                "labelled_texts": 0,
                "evaluations": 0,
                "seconds": round(seconds_here, 1),
                "seed": 0,
            }


def main() -> None:
    """Runs the rows and merges them into the table; fewer texts are a trial and are only printed."""
    parser = argparse.ArgumentParser(description="Accuracy of a compressed text encoder.")
    parser.add_argument("--texts", type=int, default=N_TEXTS, help="unlabelled texts")
    parser.add_argument("--ratio", type=float, action="append", help="of the encoder's MACs")
    parser.add_argument("--way", choices=WAYS, action="append")
    args = parser.parse_args()
    for row in rows(args.texts, args.ratio or RATIOS, args.way or tuple(WAYS)):
        print({key: value for key, value in row.items() if value is not None}, flush=True)
        if args.texts == N_TEXTS:
            merge_table(table_path("text"), [{**row, **context()}], KEY)


if __name__ == "__main__":
    main()
