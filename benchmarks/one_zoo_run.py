# SPDX-License-Identifier: Apache-2.0
"""One network of the zoo, studied, planned, built, saved, loaded and exported in a process of its own.

python benchmarks/one_zoo_run.py torchvision/resnet18
python benchmarks/one_zoo_run.py torchvision/resnet18 --torch-pruning

Prints its row as JSON after every step, so that whoever kills it knows how far it came: the last line holds.
"""

import argparse
import collections
import hashlib
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import slimrank as sr
from benchmarks import zoo, zoo_coverage
from benchmarks.one_run import Clock
from slimrank.forward import named_tensors
from slimrank.records import METRICS, Method
from slimrank.select import reachable_floor

RATIOS = (0.6, 0.4)
N_BATCHES, N_SAMPLES = 2, 8
TIMES_PRUNED = 0.25
# Steps whose CPU seconds are told as well: other work on the machine moves them less.
CPU_STEPS = ("study", "plan", "apply")
_OUTPUTS = "outputs.pt"
_MEMORY_LIMIT = 12 * 2**30
Value = str | int | float | None


class Row:
    """What is known so far; printed whenever a step begins or ends.

    Attributes:
        values: column -> value.
    """

    def __init__(self, net: zoo.Net) -> None:
        self.values: dict[str, Value] = {"network": net.name, "source": net.source}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Names the step under way, and adds its seconds to the columns ``name_s`` and ``name_cpu_s``."""
        self.values["failed_step"] = name
        self.say()
        clock = Clock()
        try:
            yield
        finally:
            step = name.split(" ", maxsplit=1)[0]
            wall, cpu = clock.lap()
            self._add(f"{step}_s", wall)
            if step in CPU_STEPS:
                self._add(f"{step}_cpu_s", cpu)
        self.values["failed_step"] = None

    def _add(self, column: str, seconds: float) -> None:
        self.values[column] = round(float(self.values.get(column) or 0) + seconds, 1)

    def say(self) -> None:
        """Prints the row."""
        self.values["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(self.values), flush=True)


def arguments(net: zoo.Net, n_samples: int) -> tuple[tuple[object, ...], dict[str, object]]:
    """Inputs as the network's users give them: by keyword for transformers, else by position."""
    inputs = dict(net.inputs(n_samples))
    return ((), inputs) if net.source == "transformers" else (tuple(inputs.values()), {})


def batches(net: zoo.Net) -> list[object]:
    """A few batches for a study; all differ."""
    found: list[object] = []
    for index in range(N_BATCHES):
        args, kwargs = arguments(net, N_SAMPLES + index)
        found.append(kwargs or args)
    return found


def outputs(model: nn.Module, net: zoo.Net) -> list[tuple[str, Tensor]]:
    """Every tensor that the network returns for two samples, with its name."""
    args, kwargs = arguments(net, 2)
    with torch.no_grad():
        return list(named_tensors(model.eval()(*args, **kwargs)))


def digest(model: nn.Module) -> str:
    """Fingerprint of every tensor of a model, bit for bit."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def are_close(expected: Sequence[tuple[str, Tensor]], found: Sequence[tuple[str, Tensor]]) -> bool:
    """Whether outputs are the same up to rounding: kernels differ in the last bit with where tensors lie."""
    return [name for name, _ in expected] == [name for name, _ in found] and all(
        torch.allclose(
            a.double(), b.double(), rtol=1e-4, atol=1e-5 * float(a.abs().max() if a.numel() else 0)
        )
        for (_, a), (_, b) in zip(expected, found, strict=True)
    )


def first_line(error: BaseException) -> str:
    """Kind and beginning of an error."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "/slimrank/" in path or "/torch_pruning/" in path:
            where = f" ({Path(path).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


class CheckError(Exception):
    """What came out is not what was promised."""


def describe(study: sr.Study, row: Row) -> None:
    """Layers and groups, live and frozen, and the commonest reasons."""
    groups = study.structure.channels.groups.values()
    frozen = [group.reason for group in groups if group.reason is not None]
    silent = [spec.name for spec in study.layers if not spec.methods and spec.reason is None]
    consumers = {name for group in groups if group.reason is None for name in group.consumers}
    open_layers = [spec for spec in study.layers if spec.methods or spec.name in consumers]
    row.values |= {
        "layers": len(study.layers),
        "layers_open": len(open_layers),
        "layers_prunable": sum("channel_pruning" in spec.methods for spec in study.layers),
        "layers_narrowed": sum(
            "channel_pruning" in spec.methods or spec.name in consumers for spec in study.layers
        ),
        "layers_splittable": sum(
            any(method != "channel_pruning" for method in spec.methods) for spec in study.layers
        ),
        "groups": len(groups),
        "groups_live": len(groups) - len(frozen),
        "blocks": len(study.structure.channels.blocks),
        "why_frozen": "; ".join(f"{count} x {why}" for why, count in common(frozen)),
        "floor": round(reachable_floor(study, "macs"), 4),
    }
    if silent:
        raise CheckError(f"{len(silent)} layers have neither method nor reason: {', '.join(silent[:3])}")


def common(reasons: Sequence[str], shown: int = 3) -> list[tuple[str, int]]:
    """The commonest reasons, without the places that they name, so that like ones count as one."""
    short = (re.split(r" at |[:(]", reason.replace("model output", "model output:"))[0] for reason in reasons)
    return collections.Counter(short).most_common(shown)


def check_result(study: sr.Study, plan: sr.Plan, result: sr.Result, net: zoo.Net, asked: float) -> None:
    """Refuses a result that costs something else than the plan says, or whose outputs changed shape.

    Raises:
        CheckError: it does.
    """
    for metric in METRICS:
        planned, counted = plan.after.metric(metric), result.after.metric(metric)
        if planned != counted:
            raise CheckError(f"the plan says {planned:,} {metric}, the model counts {counted:,}")
    if result.keep_ratio("macs") > asked:
        raise CheckError(f"{result.keep_ratio('macs'):.6f} of the MACs, {asked} were asked for")
    before, after = outputs(study._session.original, net), outputs(result.model, net)
    if [(name, t.shape, t.dtype) for name, t in before] != [(name, t.shape, t.dtype) for name, t in after]:
        raise CheckError("outputs differ in name, shape or dtype")
    bad = [name for name, tensor in after if not tensor.isfinite().all()]
    if bad:
        raise CheckError(f"output {bad[0] or 'of the model'} is not finite")


def check_loaded(net: zoo.Net, results: Mapping[Path, sr.Result]) -> None:
    """Loads results in a new process.

    Args:
        net: the network.
        results: by the folders that they were saved to.

    Raises:
        CheckError: a tensor differs, or outputs do.
    """
    command = [sys.executable, __file__, f"{net.source}/{net.name}", "--load", *map(str, results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"loading in a new process: {done.stderr.strip().splitlines()[-1][:300]}")
    for (path, result), found in zip(results.items(), done.stdout.split()[-len(results) :], strict=True):
        if found != digest(result.model):
            raise CheckError("loaded in a new process, it has other weights")
        if not are_close(outputs(result.model, net), torch.load(path / _OUTPUTS)):
            raise CheckError("loaded in a new process, it gives other outputs")


def export(model: nn.Module, net: zoo.Net) -> None:
    """Exports and runs what came out.

    Raises:
        CheckError: it gives other outputs.
    """
    args, kwargs = arguments(net, 2)
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs).module()
        found = list(named_tensors(program(*args, **kwargs)))
    if not are_close(outputs(model, net), found):
        raise CheckError("the exported program gives other outputs")


def run(net: zoo.Net, row: Row, methods: Sequence[Method]) -> None:
    """Every step of one network, into its row."""
    with row.step("build"):
        model = zoo_coverage.build(net)
        row.values["params"] = sum(p.numel() for p in model.parameters())
    with row.step("study"):
        study = sr.study(model, batches(net), methods=methods, progress=False)
    with row.step("groups"):
        describe(study, row)
    with tempfile.TemporaryDirectory() as folder:
        results: dict[Path, sr.Result] = {}
        for asked in RATIOS:
            path = Path(folder) / f"{asked:g}"
            results[path] = planned_and_built(study, row, net, asked)
            with row.step("save"):
                results[path].save(path)
        with row.step("load"):
            check_loaded(net, results)
    with row.step("export"):
        row.values["export"] = exports(model, results[path].model, net)


def planned_and_built(study: sr.Study, row: Row, net: zoo.Net, asked: float) -> sr.Result:
    """One plan and what comes of it, checked."""
    name = f"{asked:g}"
    # Where less than that cannot go, as much as can.
    ratio = max(asked, math.ceil(1e4 * float(row.values["floor"] or 0) + 1) / 1e4)
    with row.step(f"plan {name}"):
        plan = study.plan(macs=ratio)
    with row.step(f"apply {name}"):
        result = study.apply(plan)
    with row.step(f"verify {name}"):
        check_result(study, plan, result, net, ratio)
    row.values |= {
        f"macs_{name}": round(result.keep_ratio("macs"), 4),
        f"params_{name}": round(result.keep_ratio("params"), 4),
        f"split_{name}": len(plan.settings),
        f"narrowed_{name}": len(plan.groups),
        f"dropped_{name}": len(plan.dropped),
        f"divergence_{name}": None if result.divergence is None else round(result.divergence, 4),
    }
    return result


def exports(model: nn.Module, slim: nn.Module, net: zoo.Net) -> str:
    """What ``torch.export`` makes of the slimmed network; a failure must be the original's too."""
    try:
        export(slim, net)
    except CheckError:
        raise
    except Exception:
        try:
            export(model, net)
        except Exception as error:
            return f"not of the original either: {first_line(error)[:120]}"
        raise
    return "ok"


def output_layers(model: nn.Module, net: zoo.Net) -> list[nn.Module]:
    """Layers whose outputs reach the network's without another layer between: what no tool may narrow."""
    owner = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim >= 2:
                owner[parameter] = module
    args, kwargs = arguments(net, 2)
    ends = [t.grad_fn for _, t in named_tensors(model(*args, **kwargs)) if t.grad_fn is not None]
    found: list[nn.Module] = []
    seen = set(ends)
    while ends:
        node = ends.pop()
        following = [child for child, _ in node.next_functions if child is not None]
        weights = [owner[w] for child in following for w in _weights(child) if w in owner]
        if weights:
            found += [module for module in weights if module not in found]
            continue
        ends += [child for child in following if child not in seen]
        seen |= set(following)
    return found


def _weights(node: torch.autograd.graph.Node) -> list[Tensor]:
    """The parameter that a node of the graph stands for, transposed or not."""
    if hasattr(node, "variable"):
        return [node.variable]
    if type(node).__name__ in ("TBackward0", "TransposeBackward0"):
        return [w for child, _ in node.next_functions if child is not None for w in _weights(child)]
    return []


def macs(model: nn.Module, net: zoo.Net) -> int:
    """By torch's counter, fused kernels off: it knows neither tool."""
    args, kwargs = arguments(net, 1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        # The counter hooks gradients, and fails where a parameter itself is handed to a module.
        model.requires_grad_(requires_grad=False)
        with zoo.plain_kernels(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*args, **kwargs)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def prune_with_torch_pruning(net: zoo.Net, row: Row) -> None:
    """Torch-Pruning with its defaults: a quarter of the channels by magnitude, output layers ignored."""
    import torch_pruning as tp  # noqa: PLC0415

    with row.step("build"):
        model = zoo_coverage.build(net)
        before, shapes = macs(model, net), [t.shape for _, t in outputs(model, net)]
    args, kwargs = arguments(net, 2)
    with row.step("tp"):
        pruner = tp.pruner.MagnitudePruner(
            model,
            kwargs or (args if len(args) > 1 else args[0]),
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=TIMES_PRUNED,
            ignored_layers=output_layers(model, net),
        )
        pruner.step()
    with row.step("tp_forward"):
        after = outputs(model, net)
        if [t.shape for _, t in after] != shapes:
            raise CheckError("outputs changed shape")
        row.values["tp_macs"] = round(macs(model, net) / before, 4)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=zoo_coverage.NETS)
    parser.add_argument("--torch-pruning", action="store_true", help="prune with Torch-Pruning instead")
    parser.add_argument("--methods", nargs="*", choices=sr.METHODS, default=sr.METHODS)
    parser.add_argument("--load", nargs="*", type=Path, help="load these results, print fingerprints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # One network must not take the machine from the others.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    warnings.filterwarnings("ignore")
    zoo.stand_in_for_torchvision()
    net = zoo_coverage.NETS[args.network]
    if args.load:
        for path in args.load:
            model = sr.load(path, model=zoo_coverage.build(net))
            torch.save(outputs(model, net), path / _OUTPUTS)
            print(digest(model))
        return
    row = Row(net)
    try:
        if args.torch_pruning:
            prune_with_torch_pruning(net, row)
        else:
            run(net, row, args.methods)
    except Exception as error:
        row.values["error"] = first_line(error)
    row.say()


if __name__ == "__main__":
    main()
