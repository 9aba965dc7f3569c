# SPDX-License-Identifier: Apache-2.0
"""Whether ``likelihood="auto"`` costs anything: kinds of networks under auto and under what is right.

Every kind of ``benchmarks/kinds`` is compressed twice to the same budget, without labels and training, and
judged in its own measure. ``worse_percent`` is what is lost by auto beside the right reading, in percent of
that measure (negative where auto is better). One row for each kind in
``benchmarks/results/auto-cpu-torch<version>.csv``; the run fails where auto is worse by more than 5 %.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from joblib import Parallel, delayed

import slimrank as sr
from benchmarks.kinds.kind import Family, Kind
from benchmarks.kinds.table import KINDS
from benchmarks.tables import Row, keep_rows

WORST = 5.0


def right_of(kind: Kind) -> Family | dict[str, Family]:
    """What is right, as ``likelihood=`` takes it."""
    return kind.right[""] if "" in kind.right else dict(kind.right)


def _built(kind: Kind, likelihood: object) -> tuple[float, sr.Study, sr.Result]:
    model = kind.load()
    study = sr.study(model, kind.batches(), likelihood=likelihood, progress=False)  # type: ignore[arg-type]
    result = study.apply(study.plan(macs=kind.macs))
    return kind.score(result.model), study, result


def _families(result: sr.Result) -> str:
    agreement = result.agreement
    if agreement is None:
        return ""
    return " ".join(f"{path}:{output.family}".lstrip(":") for path, output in agreement.items())


def compare(kind: Kind) -> Row:
    """One kind under auto and under what is right.

    Args:
        kind: to compress.

    Returns:
        A row of the table.
    """
    torch.set_num_threads(1)
    original = kind.score(kind.load())
    right, _, right_result = _built(kind, right_of(kind))
    is_same = _families(right_result) == " ".join(
        f"{path}:{family}".lstrip(":") for path, family in kind.right.items()
    )
    if not is_same:
        raise RuntimeError(f"{kind.name}: its outputs are {_families(right_result)}, not those of the kind")
    auto, study, auto_result = _built(kind, "auto")
    lost = right - auto if kind.higher_is_better else auto - right
    agreement = auto_result.agreement
    return {
        "kind": kind.name,
        "measure": kind.measured,
        "macs": round(auto_result.keep_ratio("macs"), 4),
        "original": float(f"{original:.5g}"),
        "right": float(f"{right:.5g}"),
        "auto": float(f"{auto:.5g}"),
        "worse_percent": round(100 * lost / max(abs(right), 1e-12), 2),
        "right_reading": _families(right_result),
        "auto_reading": _families(auto_result),
        "top1": None if agreement is None or agreement.top1 is None else round(agreement.top1, 4),
        "relative_error": None
        if agreement is None or agreement.relative_error is None
        else round(agreement.relative_error, 4),
        "lost": None if agreement is None else round(agreement.lost, 4),
        "note": " | ".join(note.text for note in study.notes if note.where == "outputs"),
    }


def _rows(kinds: Sequence[Kind], jobs: int, worst: list[Row]) -> Iterator[Row]:
    found = Parallel(n_jobs=jobs, return_as="generator")(delayed(compare)(kind) for kind in kinds)
    for row in found:
        if float(str(row["worse_percent"])) > WORST:
            worst.append(row)
        yield row


def main() -> None:
    """Compares kinds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="names; none for all")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    worst: list[Row] = []
    kinds = [KINDS[name] for name in options.kinds or KINDS]
    keep_rows("auto", _rows(kinds, options.jobs, worst), ("kind",))
    if worst:
        sys.exit(f"auto is worse by more than {WORST} %: {', '.join(str(row['kind']) for row in worst)}")
    print(f"{len(kinds)} kinds, none worse by more than {WORST} %")


if __name__ == "__main__":
    main()
