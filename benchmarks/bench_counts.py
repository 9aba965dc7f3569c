# SPDX-License-Identifier: Apache-2.0
"""Are the MACs and params that slimrank reports those of the network, before and after compression?

Two tables over the thirty networks of ``zoo.py``, both in ``benchmarks/results/``:

- ``counts-networks-cpu-torch<version>.csv``: what slimrank, torch's flop counter / 2, fvcore and (where it
  exists) torchvision's own page say of the network as it is, and why they differ. The truth beside them is
  torch's counter with the fused kernels off (``zoo.plain_kernels``), which shares no formula with slimrank.
- ``counts-plans-cpu-torch<version>.csv``: the keep ratio that a plan reports, against what the built model
  counts, by slimrank and by the same truth.

Every network runs in a process of its own, which may fail: then its row tells the error. A second run does
what is missing; ``--again`` does all. No data are needed: one sample tells the shapes, factors come from the
weights. Plans of networks of up to five million params are the optimal ones of a data-free study; in larger
ones every layer gets the same ratio: the decompositions of a study would take minutes and change no count.
"""

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import slimrank as sr
from benchmarks import zoo
from slimrank.capture import Captured, capture, count_by_module
from slimrank.forward import as_batch
from slimrank.plan import Structure, structure_of
from slimrank.records import Cost, Curve

RESULTS = Path(__file__).parent / "results"
TABLES = ("networks", "plans")
LIMIT_SECONDS = 900
RATIOS = (0.5, 0.75, 0.9)
SMALL = 5_000_000
Value = str | int | float | None
Row = dict[str, Value]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "networks": (
        "network",
        "source",
        "input",
        "params_slimrank",
        "params_parameters",
        "params_published",
        "macs_slimrank",
        "macs_truth",
        "macs_torch",
        "macs_fvcore",
        "gmacs_published",
        "slimrank_off_percent",
        "torch_off_percent",
        "fvcore_off_percent",
        "fvcore_beside_products",
        "fvcore_products_off",
        "macs_outside_layers",
        "why",
        "seconds",
        "error",
    ),
    "plans": (
        "network",
        "source",
        "select",
        "macs_asked",
        "layers_compressed",
        "layers",
        "macs_reported",
        "macs_counted",
        "macs_truth",
        "macs_reported_off",
        "params_reported",
        "params_counted",
        "params_truth",
        "macs_torch",
        "why",
        "seconds",
        "error",
    ),
}
_STAMP = ("torch", "slimrank", "commit", "date")

# Kernels that multiply and that torch's counter has no formula for.
_UNKNOWN_TO_TORCH = {
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_native_multi_head_attention": "attention",
    "_transformer_encoder_layer_fwd": "whole encoder layers",
    "mkldnn_rnn_layer": "LSTM",
    "_grouped_mm": "experts",
    "_trilinear": "bilinear layers",
    "mv": "matrix times vector",
    "dot": "dot products",
}
_PRODUCTS = ("conv", "linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "einsum")


class _Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Which kernels run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        """Counts one call and makes it."""
        name = str(func).split(".")[1]
        self.names[name] = self.names.get(name, 0) + 1
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


class _Positional(nn.Module):
    """The network as fvcore takes it: tensors in by position, one tensor out."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The first output of the network."""
        out = self.net(**dict(zip(self.names, tensors, strict=True)))
        return out if isinstance(out, Tensor) else out[0]


def _arguments(net: zoo.Net, n_samples: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    inputs = dict(net.inputs(n_samples))
    return ((), inputs) if net.source == "transformers" else (tuple(inputs.values()), {})


def _torch_macs(model: nn.Module, net: zoo.Net) -> int:
    args, kwargs = _arguments(net, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops() // 2


def _true_macs(model: nn.Module, net: zoo.Net) -> int:
    with zoo.plain_kernels(model):
        return _torch_macs(model, net)


def _unknown_kernels(model: nn.Module, net: zoo.Net) -> dict[str, int]:
    args, kwargs = _arguments(net, 1)
    calls = _Calls()
    with torch.no_grad(), calls:
        model(*args, **kwargs)
    found: dict[str, int] = {}
    for kernel, word in _UNKNOWN_TO_TORCH.items():
        if kernel in calls.names:
            found[word] = found.get(word, 0) + calls.names[kernel]
    return found


def _uncounted(model: nn.Module, captured: Captured) -> str:
    """What slimrank says it does not count."""
    return ", ".join(count_by_module(model, captured.sample)[2]) or "something"


def _fvcore(model: nn.Module, net: zoo.Net) -> tuple[dict[str, int], list[str]]:
    """MACs by operator, and the operators that multiply but were not counted."""
    from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415

    inputs = net.inputs(1)
    wrapped = _Positional(model, list(inputs)) if net.source == "transformers" else model
    analysis = FlopCountAnalysis(wrapped, tuple(inputs.values()))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    analysis.tracer_warnings("none")
    counted = {str(name): int(macs) for name, macs in analysis.by_operator().items()}
    words = ("dot_product", "convolution_mode", "lstm", "gru", "grouped_mm", "baddbmm", "multi_head")
    missed = [
        f"{count} {name.removeprefix('aten::')}"
        for name, count in analysis.unsupported_ops().items()
        if any(word in name for word in words)
    ]
    return counted, missed


def _published(net: zoo.Net) -> tuple[int | None, float | None]:
    if net.source != "torchvision":
        return None, None
    import torchvision  # noqa: PLC0415

    weights = torchvision.models.get_model_weights(net.name)
    meta = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT).meta
    return meta["num_params"], meta["_ops"]


def _off(value: int, truth: int) -> float:
    return round(100 * (value / truth - 1), 4)


def _network_row(model: nn.Module, net: zoo.Net, row: Row) -> None:
    truth, plain = _true_macs(model, net), _torch_macs(model, net)
    params, gmacs = _published(net)
    row |= {
        "input": " ".join(f"{name}{list(t.shape)}" for name, t in net.inputs(1).items()).replace(",", ""),
        "params_parameters": sum(p.numel() for p in model.parameters()),
        "params_published": params,
        "macs_truth": truth,
        "macs_torch": plain,
        "gmacs_published": gmacs,
        "torch_off_percent": _off(plain, truth),
    }
    why = []
    unknown = _unknown_kernels(model, net)
    if plain != truth:
        why.append(
            "torch: no formula for " + ", ".join(f"{n} calls of {word}" for word, n in unknown.items())
        )
    try:
        counted, missed = _fvcore(model, net)
    except Exception as error:
        why.append(f"fvcore fails: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    else:
        beside = {name: macs for name, macs in counted.items() if name not in _PRODUCTS and macs}
        products = sum(macs for name, macs in counted.items() if name in _PRODUCTS)
        total = sum(counted.values())
        row |= {
            "macs_fvcore": total,
            "fvcore_off_percent": _off(total, truth),
            "fvcore_beside_products": sum(beside.values()),
            "fvcore_products_off": products - truth,
        }
        if beside:
            why.append("fvcore adds " + ", ".join(f"{name} {macs}" for name, macs in beside.items()))
        if missed:
            why.append("fvcore does not count " + ", ".join(missed))
    row["why"] = "; ".join(why)
    args, kwargs = _arguments(net, 1)
    captured = capture(model, as_batch(kwargs or args), methods=sr.METHODS, skip=(), has_bias=False)
    before = captured.before
    row |= {
        "params_slimrank": before.params,
        "macs_slimrank": before.macs,
        "slimrank_off_percent": _off(before.macs, truth),
        "macs_outside_layers": before.macs - sum(spec.macs for spec in captured.layers),
    }
    if before.macs != truth:
        row["why"] = "; ".join([*why, f"slimrank lacks {_uncounted(model, captured)}"])


@dataclass(frozen=True)
class _Source:
    """What ``Plan.manual`` asks of a study, without its curves: those would need decompositions."""

    structure: Structure
    before: Cost
    has_bias: bool = False
    curves: Sequence[Curve] = ()
    methods: Sequence[str] = sr.METHODS


def _uniform_plan(captured: Captured, ratio: float) -> sr.Plan:
    """Every layer at one ratio, the largest of twentieths at which the network keeps the budget."""
    source = _Source(structure_of(captured.layers), captured.before)
    for share in (twentieths / 20 for twentieths in range(20, 0, -1)):
        settings = {}
        for spec in captured.layers:
            for method in spec.methods[::-1]:
                try:
                    sr.Plan.manual(source, {spec.name: (method, share)})
                except sr.RankError:
                    continue
                settings[spec.name] = (method, share)
                break
        plan = sr.Plan.manual(source, settings)
        if plan.keep_ratio("macs") <= ratio:
            return plan
    raise sr.BudgetError(f"macs={ratio} cannot be met by one ratio for all layers")


def _plan_row(model: nn.Module, net: zoo.Net, row: Row) -> None:
    args, kwargs = _arguments(net, 1)
    batch = kwargs or args
    is_small = sum(p.numel() for p in model.parameters()) <= SMALL
    study = sr.study(model, [batch], data_free=True, progress=False) if is_small else None
    captured = capture(model, as_batch(batch), methods=sr.METHODS, skip=(), has_bias=False)
    why = ""
    for ratio in RATIOS:
        try:
            plan = _uniform_plan(captured, ratio) if study is None else study.plan(macs=ratio)
            break
        except sr.BudgetError as error:
            why = str(error).split("Of the")[0].removeprefix("budget: ").strip()
    else:
        raise RuntimeError(why)
    result = sr.apply(model, plan, progress=False)
    built = result.model.eval()
    truth = _true_macs(built, net) / _true_macs(model, net)
    counted = count_by_module(built, captured.sample)[0].macs / captured.before.macs
    if study is not None:
        counted = study.apply(plan).keep_ratio("macs")
    if abs(plan.keep_ratio("macs") - truth) > 1e-6:
        why = f"{why} slimrank lacks {_uncounted(built, captured)}".strip()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, built))
    row |= {
        "select": plan.select,
        "macs_asked": ratio,
        "layers_compressed": len(plan.settings),
        "layers": len(captured.layers),
        "macs_reported": round(plan.keep_ratio("macs"), 6),
        "macs_counted": round(counted, 6),
        "macs_truth": round(truth, 6),
        "macs_reported_off": round(plan.keep_ratio("macs") - truth, 6),
        "params_reported": round(plan.keep_ratio("params"), 6),
        "params_counted": round(result.keep_ratio("params"), 6),
        "params_truth": round(after / before, 6),
        "macs_torch": round(_torch_macs(built, net) / _torch_macs(model, net), 6),
        "why": why,
    }


def _run_one(table: str, key: str) -> None:
    """In the process of one network: prints its row as JSON, last."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    zoo.stand_in_for_torchvision()
    net = zoo.NETS[key]
    row: Row = {"network": net.name, "source": net.source, "torch": torch.__version__}
    row["slimrank"] = sr.__version__
    start = time.perf_counter()
    try:
        model = zoo.build(net)
        (_network_row if table == "networks" else _plan_row)(model, net, row)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    row["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(row))


def _ask(table: str, key: str) -> Row:
    """The row of one network, from a process of its own."""
    net = zoo.NETS[key]
    row: Row = {"network": net.name, "source": net.source}
    command = [sys.executable, __file__, "--table", table, "--one", key]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment, check=False
        )
        row = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        row["error"] = f"not done in {LIMIT_SECONDS} s"
    except (IndexError, json.JSONDecodeError):
        row["error"] = f"exit {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])[:250]}"
    return row


def _path(table: str) -> Path:
    return RESULTS / f"counts-{table}-cpu-torch{torch.__version__.split('+')[0]}.csv"


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(table: str, rows: Sequence[Row]) -> None:
    order = {net.name: index for index, net in enumerate(zoo.NETS.values())}
    position = {(net.source, net.name): index for index, net in enumerate(zoo.NETS.values())}
    known = [row for row in rows if row["network"] in order]
    known.sort(key=lambda row: position[str(row["source"]), str(row["network"])])
    RESULTS.mkdir(exist_ok=True)
    with _path(table).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*COLUMNS[table], *_STAMP])
        writer.writeheader()
        writer.writerows(known)


def main() -> None:
    """Fills both tables; rows that are there and have no error are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=TABLES, help="one of the tables; both without it")
    parser.add_argument("--one", help="print one network's row as JSON (used by the benchmark itself)")
    parser.add_argument("--only", nargs="*", help="some networks, e.g. timm/levit_128s", choices=zoo.NETS)
    parser.add_argument("--again", action="store_true", help="do rows again that are there already")
    asked = parser.parse_args()
    if asked.one:
        _run_one(asked.table, asked.one)
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    stamp = {
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    for table in (asked.table,) if asked.table else TABLES:
        for key in asked.only or zoo.NETS:
            source, name = key.split("/")
            rows = _rows(_path(table))
            there = [row for row in rows if (row["source"], row["network"]) == (source, name)]
            if there and not there[0]["error"] and not asked.again:
                continue
            row = _ask(table, key) | stamp
            _write(table, [*(other for other in rows if other not in there), row])
            print({k: v for k, v in row.items() if k not in _STAMP and v is not None}, flush=True)


if __name__ == "__main__":
    main()
