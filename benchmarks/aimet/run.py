# SPDX-License-Identifier: Apache-2.0
"""Has AIMET compress one network as a job file says; runs under the Python of AIMET's own venv.

    <AIMET's venv>/bin/python benchmarks/aimet/run.py job.json

The README of this folder describes the job file and what is written.
"""

import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

# AIMET imports torchvision; the stand-in answers. The repository's root is for `benchmarks`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "stand_in"))

import numpy as np
import torch
from aimet_torch.common.defs import (
    CompressionScheme,
    CompressionStats,
    CostMetric,
    GreedySelectionParameters,
    RankSelectScheme,
)
from aimet_torch.compress import ModelCompressor
from aimet_torch.defs import ChannelPruningParameters, SpatialSvdParameters, WeightSvdParameters
from aimet_torch.model_preparer import prepare_model
from aimet_torch.winnow.winnow_utils import DownsampleLayer, UpsampleLayer
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.aimet.rebuild import FORMAT, SIZES, build, file_stem, rebuild
from benchmarks.tasks.networks import NETWORKS

TABLE = Path("data/greedy_selection_eval_scores_dict.pkl")  # AIMET's choice, from the working directory
PACKAGES = ("aimet-torch", "torch", "numpy", "scipy", "safetensors")
SCHEMES = {
    "spatial_svd": CompressionScheme.spatial_svd,
    "weight_svd": CompressionScheme.weight_svd,
    "channel_pruning": CompressionScheme.channel_pruning,
}
CHECK_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the job file says.

    Attributes:
        network: a key of ``benchmarks.tasks.networks.NETWORKS``.
        weights: safetensors file of its state dict, in any float type.
        images: ``.pt`` or ``.npz`` file with ``images`` (N, C, H, W) float32 and ``labels`` (N,) int64.
        out: folder to write to; made if missing.
        kind: ``compress`` all ``ratios`` from one score table, ``timed`` one call at ``ratio`` from nothing,
            or ``one_eval``, the time of one evaluation.
        scheme: AIMET's.
        metric: AIMET's; what the ratios are about.
        ratios: cost after / cost before, for ``compress``.
        ratio: the one of ``timed``.
        candidates: AIMET's ``num_comp_ratio_candidates``.
        ignore: dotted names of the modules to leave alone.
        batch_size: of the evaluation.
        threads: of torch and of numpy's linear algebra.
        samples: for ``channel_pruning``, AIMET's ``num_reconstruction_samples``, 10 from each image.
        downsample: for ``channel_pruning``, AIMET's ``allow_custom_downsample_ops``.
        prepare: AIMET's ``prepare_model`` first, which turns functions into modules.
        start: ``out`` of an earlier job, whose network at ``start_ratio`` is compressed further; None: the
            original is compressed. Ratios are of the network that this job starts from.
        start_ratio: one of that job's ``ratios``.
    """

    network: str
    weights: Path
    images: Path
    out: Path
    kind: Literal["compress", "timed", "one_eval"] = "compress"
    scheme: Literal["spatial_svd", "weight_svd", "channel_pruning"] = "spatial_svd"
    metric: Literal["mac", "memory"] = "mac"
    ratios: tuple[float, ...] = (0.75, 0.5, 0.35, 0.25)
    ratio: float = 0.5
    candidates: int = 10
    ignore: tuple[str, ...] = ()
    batch_size: int = 250
    threads: int = 1
    samples: int = 5000
    downsample: bool = False
    prepare: bool = False
    start: Path | None = None
    start_ratio: float = 1.0


def load_job(path: Path) -> Job:
    """Reads a job file.

    Args:
        path: a JSON object with the fields of ``Job``; paths in it are relative to the working directory.

    Returns:
        The job, with absolute paths.

    Raises:
        TypeError: a field is missing or unknown.
    """
    fields = json.loads(path.read_text())
    paths = [key for key in ("weights", "images", "out", "start") if fields.get(key) is not None]
    fields.update({key: Path(fields[key]).resolve() for key in paths})
    fields.update({key: tuple(fields[key]) for key in ("ratios", "ignore") if key in fields})
    return Job(**fields)


def load_network(job: Job) -> nn.Module:
    """The network that a job starts from in float32, in eval mode: the original, or what an earlier one made.

    Args:
        job: names the network and the file.

    Returns:
        A new network.
    """
    network = NETWORKS[job.network]()
    if job.start is not None:
        return rebuild(network, job.start, job.start_ratio)
    network.load_state_dict(load_file(job.weights))
    return network.eval()


def own_network(job: Job) -> nn.Module:
    """The network as AIMET gets it.

    Args:
        job: names the network and the file, and says whether ``prepare_model`` comes first.

    Returns:
        A new network.
    """
    network = load_network(job)
    return prepare_model(network) if job.prepare else network


def load_images(path: Path) -> tuple[Tensor, Tensor]:
    """The labelled images of an evaluation.

    Args:
        path: ``.npz``, or anything else for ``torch.load``; holds ``images`` and ``labels``.

    Returns:
        (N, C, H, W) float32 and (N,) int64.
    """
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return torch.from_numpy(arrays["images"]).float(), torch.from_numpy(arrays["labels"]).long()
    tensors = torch.load(path, weights_only=True)
    return tensors["images"].float(), tensors["labels"].long()


class Evaluation:
    """AIMET's ``eval_callback``: top-1 accuracy in percent on all images, counted and timed.

    AIMET hands ``iterations`` on while it fills its score table and gives None afterwards; that is how the
    two phases are told apart.

    Attributes:
        calls: evaluations so far.
        table_calls: those of the score table.
        seconds: spent inside evaluations.
        table_end: ``time.perf_counter()`` at the end of the table's last evaluation; None before the first.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self._batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
        self._count = len(labels)
        self._next_line = time.perf_counter() + 10
        self.calls = self.table_calls = 0
        self.seconds = 0.0
        self.table_end: float | None = None

    def __call__(self, model: nn.Module, iterations: int | None, use_cuda: bool = False) -> float:
        """Top-1 accuracy.

        Args:
            model: the network.
            iterations: not None while the score table is filled; all images are used in any case.
            use_cuda: not used.

        Returns:
            Percent.
        """
        start = time.perf_counter()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self._batches)
        end = time.perf_counter()
        self.calls += 1
        self.seconds += end - start
        if iterations is not None:
            self.table_calls += 1
            self.table_end = end
        if end > self._next_line:
            print(f"{self.calls} evaluations, {self.seconds:.1f} s in them", flush=True)
            self._next_line = end + 10
        return 100 * right / self._count


Parameters = SpatialSvdParameters | WeightSvdParameters | ChannelPruningParameters


def parameters_of(
    job: Job, ratio: float, table: Path | None, network: nn.Module, data: tuple[Tensor, Tensor]
) -> Parameters:
    """AIMET's own description of what to do.

    Args:
        job: scheme, candidates, modules to ignore.
        ratio: cost after / cost before.
        table: a score table from an earlier call; None: AIMET computes one and writes it to ``TABLE``.
        network: holds the modules to ignore.
        data: images (N, C, H, W) and labels (N,); channel pruning fits to the images.

    Returns:
        The parameters of the scheme, in automatic mode with greedy selection.
    """
    greedy = GreedySelectionParameters(
        target_comp_ratio=ratio,
        num_comp_ratio_candidates=job.candidates,
        saved_eval_scores_dict=None if table is None else str(table),
    )
    # An earlier job may have split a layer that this one is to leave alone.
    ignored = [module for name in job.ignore for module in network.get_submodule(name).modules()]
    if job.scheme == "spatial_svd":
        spatial = SpatialSvdParameters.AutoModeParams(greedy, modules_to_ignore=ignored)
        return SpatialSvdParameters(SpatialSvdParameters.Mode.auto, spatial)
    if job.scheme == "channel_pruning":
        return ChannelPruningParameters(
            data_loader=DataLoader(TensorDataset(*data), batch_size=50),
            num_reconstruction_samples=job.samples,
            allow_custom_downsample_ops=job.downsample,
            mode=ChannelPruningParameters.Mode.auto,
            params=ChannelPruningParameters.AutoModeParams(greedy, modules_to_ignore=ignored),
        )
    weight = WeightSvdParameters.AutoModeParams(RankSelectScheme.greedy, greedy, modules_to_ignore=ignored)
    return WeightSvdParameters(WeightSvdParameters.Mode.auto, weight)


def describe(stats: CompressionStats) -> dict[str, object]:
    """What AIMET says about its result.

    Args:
        stats: as AIMET returned them.

    Returns:
        AIMET's accuracies (percent), ratios and, per layer, the ratio chosen; None for a layer left alone.
    """
    return {
        "reported_mac_ratio": float(stats.mac_compression_ratio),
        "reported_memory_ratio": float(stats.memory_compression_ratio),
        "accuracy_before": float(stats.baseline_model_accuracy),
        "accuracy_after": float(stats.compressed_model_accuracy),
        "chosen": {
            layer.name: None if layer.compression_ratio is None else float(layer.compression_ratio)
            for layer in stats.per_layer_stats
        },
    }


def score_table(stats: CompressionStats) -> dict[str, dict[str, float]]:
    """The scores that AIMET chose by.

    Args:
        stats: as AIMET returned them.

    Returns:
        Layer name to candidate ratio to score.
    """
    table = stats.compression_ratio_selection_stats.eval_scores_dictionary
    return {
        layer: {str(ratio): float(score) for ratio, score in scores.items()}
        for layer, scores in table.items()
    }


def compress(
    job: Job, ratio: float, data: tuple[Tensor, Tensor], table: Path | None
) -> tuple[dict[str, object], nn.Module | None, CompressionStats | None]:
    """One complete call of AIMET, timed; what it raises becomes text.

    Args:
        job: what to do.
        ratio: cost after / cost before.
        data: images (N, C, H, W) and labels (N,).
        table: a score table from an earlier call, or None.

    Returns:
        The entry for the report, and AIMET's network and statistics, both None after an error.
    """
    network = own_network(job)
    evaluation = Evaluation(*data, job.batch_size)
    # A mistake in the job is raised here; only what AIMET itself raises goes into the report.
    scheme, metric = SCHEMES[job.scheme], CostMetric[job.metric]
    parameters = parameters_of(job, ratio, table, network, data)
    compressed = stats = error = None
    start = time.perf_counter()
    try:
        compressed, stats = ModelCompressor.compress_model(
            network,
            eval_callback=evaluation,
            eval_iterations=1,  # any number: not None marks the evaluations of the score table
            input_shape=(1, *data[0].shape[1:]),
            compress_scheme=scheme,
            cost_metric=metric,
            parameters=parameters,
        )
    except Exception:
        error = traceback.format_exc()
    entry: dict[str, object] = {
        "ratio": ratio,
        "seconds": time.perf_counter() - start,
        "seconds_table": None if evaluation.table_end is None else evaluation.table_end - start,
        "seconds_in_evaluations": evaluation.seconds,
        "evaluations": evaluation.calls,
        "evaluations_table": evaluation.table_calls,
        "error": error,
    }
    if stats is not None:
        entry |= describe(stats)
    last_line = error.strip().splitlines()[-1] if error else f"{entry.get('accuracy_after')} %"
    print(
        f"ratio {ratio:g}: {entry['seconds']:.1f} s, {evaluation.calls} evaluations, {last_line}", flush=True
    )
    return entry, compressed, stats


def list_factor(module: nn.Module) -> dict[str, object]:
    """A module as the keyword arguments that make it again.

    Args:
        module: a Conv2d, Linear or BatchNorm2d, or AIMET's own for taking and putting back channels.

    Returns:
        ``kind`` and the arguments.

    Raises:
        TypeError: another kind of module.
    """
    if isinstance(module, DownsampleLayer):
        return {"kind": "Downsample", "kept": module.keep_tensor.tolist()}
    if isinstance(module, UpsampleLayer):
        return {"kind": "Upsample", "kept": module.indices.tolist(), "channels": len(module.mask)}
    if isinstance(module, nn.BatchNorm2d):
        return {"kind": "BatchNorm2d", "num_features": module.num_features, "eps": module.eps}
    bias = module.bias is not None
    if isinstance(module, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        return {"kind": "Conv2d", **{name: getattr(module, name) for name in names}, "bias": bias}
    if isinstance(module, nn.Linear):
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {"kind": "Linear", **sizes, "bias": bias}
    raise TypeError(f"AIMET made a {type(module).__name__}; rebuild.py does not know it")


def export(job: Job, ratio: float, compressed: nn.Module, images: Tensor) -> int:
    """Writes AIMET's network so that ``rebuild`` can make it again, and tries that.

    Args:
        job: names the network and the folder.
        ratio: cost after / cost before, as asked for.
        compressed: AIMET's network.
        images: (N, C, H, W); the first 8 go into the check.

    Returns:
        Layers replaced or made smaller.
    """
    original = load_network(job)
    layers = {
        name: [list_factor(factor) for factor in compressed.get_submodule(name).children()]
        for name, module in original.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        and isinstance(compressed.get_submodule(name), nn.Sequential)
    }
    sizes = {}
    for name, module in original.named_modules():
        if name in layers:
            continue
        own = compressed.get_submodule(name)
        changed = {
            size: getattr(own, size)
            for size in SIZES
            if hasattr(module, size) and getattr(own, size) != getattr(module, size)
        }
        if changed:
            sizes[name] = changed
    images = images[:CHECK_IMAGES].clone()
    with torch.no_grad():
        outputs = compressed.eval()(images)
    stem = file_stem(job.out, ratio)
    listing = {"format": FORMAT, "network": job.network, "scheme": job.scheme, "metric": job.metric}
    Path(f"{stem}.json").write_text(
        json.dumps({**listing, "ratio": ratio, "layers": layers, "sizes": sizes}, indent=1)
    )
    known = build(original, layers, sizes).state_dict()  # AIMET's layer for putting channels back holds more
    state = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in compressed.state_dict().items()
        if name in known
    }
    save_file(state, f"{stem}.safetensors")
    save_file({"images": images, "outputs": outputs.contiguous()}, f"{stem}.check.safetensors")
    rebuild(original, job.out, ratio)
    return len({*layers, *sizes})


def compress_all(job: Job, data: tuple[Tensor, Tensor]) -> Iterator[dict[str, object]]:
    """Every ratio from one score table, that of the first call that completes it.

    Args:
        job: what to do.
        data: images (N, C, H, W) and labels (N,).

    Yields:
        The part of the report known so far, after each ratio.
    """
    for stale in job.out.glob("compressed-*"):
        stale.unlink()  # of an earlier run; rebuild() must not find it where AIMET fails now
    report: dict[str, object] = {"scores": None, "ratios": []}
    entries: list[dict[str, object]] = []
    for ratio in job.ratios:
        made_table = not TABLE.exists()
        entry, compressed, stats = compress(job, ratio, data, None if made_table else TABLE)
        if made_table:
            names = ("seconds_table", "evaluations_table")
            report |= {name: entry[name] for name in names}
        if stats is not None:
            report["scores"] = score_table(stats)
        if compressed is not None:
            try:
                entry["layers_replaced"] = export(job, ratio, compressed, data[0])
            except Exception:
                entry["error"] = traceback.format_exc()
                print(entry["error"], flush=True)
        entries.append(entry)
        yield {**report, "ratios": entries}
        if not TABLE.exists():
            # Without a table every further ratio would repeat the same failure, evaluation by evaluation.
            reason = f"not tried: AIMET failed at ratio {ratio:g} before its score table was complete"
            rest = job.ratios[len(entries) :]
            yield {**report, "ratios": entries + [{"ratio": other, "error": reason} for other in rest]}
            return


def time_one_evaluation(job: Job, data: tuple[Tensor, Tensor]) -> dict[str, object]:
    """How long one evaluation of the original takes.

    Args:
        job: names the network and the batch size.
        data: images (N, C, H, W) and labels (N,).

    Returns:
        Accuracy (percent), the seconds of three evaluations after one to warm up, and their median.
    """
    network = load_network(job)
    evaluation = Evaluation(*data, job.batch_size)
    accuracy = evaluation(network, None)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        evaluation(network, None)
        seconds.append(time.perf_counter() - start)
    return {"accuracy": accuracy, "seconds": statistics.median(seconds), "seconds_each": seconds}


def run(job: Job) -> Iterator[dict[str, object]]:
    """Does what the job asks for.

    Args:
        job: what to do.

    Yields:
        The report's results so far; the last one is complete.
    """
    data = load_images(job.images)
    if job.kind == "one_eval":
        yield time_one_evaluation(job, data)
    elif job.kind == "timed":
        yield compress(job, job.ratio, data, None)[0]
    elif job.kind == "compress":
        yield from compress_all(job, data)
    else:
        raise ValueError(f"kind {job.kind!r} is not compress, timed or one_eval")


def main() -> None:
    """Runs the job file named on the command line and writes ``report.json`` after each step."""
    job = load_job(Path(sys.argv[1]))
    job.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(job.threads)
    head = {
        "job": {
            **asdict(job),
            "weights": job.weights.name,
            "images": job.images.name,
            "out": job.out.name,
            "start": None if job.start is None else job.start.name,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    report = job.out / "report.json"
    # AIMET writes its pickles to ./data.
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.chdir(scratch),
        threadpool_limits(limits=job.threads),
    ):
        for results in run(job):
            report.write_text(json.dumps({**head, "results": results}, indent=1))
    print(report, flush=True)


if __name__ == "__main__":
    main()
