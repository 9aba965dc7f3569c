# SPDX-License-Identifier: Apache-2.0
"""Makes the networks that ``run.py`` had AIMET compress again, with torch and safetensors alone."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FORMAT = 1
TOLERANCE = 1e-4
KINDS: dict[str, type[nn.Module]] = {"Conv2d": nn.Conv2d, "Linear": nn.Linear}


def file_stem(folder: Path, ratio: float) -> str:
    """How the files of one compressed network begin.

    Args:
        folder: the job's ``out``.
        ratio: as asked for in the job.

    Returns:
        The path up to ``.json``, ``.safetensors`` (weights) and ``.check.safetensors`` (images, outputs).
    """
    return str(folder / f"compressed-{ratio:g}")


def build(network: nn.Module, layers: dict[str, list[dict[str, object]]]) -> nn.Module:
    """A copy of the network in which the named layers are two factors each, weights still at random.

    Args:
        network: the original; not changed.
        layers: dotted name to its factors, each the keyword arguments of a module and its ``kind``.

    Returns:
        The copy, in eval mode.
    """
    compressed = copy.deepcopy(network).eval()
    for name, factors in layers.items():
        modules = [
            KINDS[str(factor["kind"])](**{key: value for key, value in factor.items() if key != "kind"})
            for factor in factors
        ]
        parent, _, attribute = name.rpartition(".")
        setattr(compressed.get_submodule(parent), attribute, nn.Sequential(*modules).eval())
    return compressed


def check_outputs(network: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Refuses a network whose outputs are not those on record.

    Args:
        network: in eval mode.
        images: (N, C, H, W).
        expected: (N, classes), the outputs on record.

    Raises:
        ValueError: the largest difference is above 1e-4 of the largest output.
    """
    with torch.no_grad():
        outputs = network(images)
    if outputs.shape != expected.shape:
        raise ValueError(f"outputs are {tuple(outputs.shape)}, AIMET's were {tuple(expected.shape)}")
    difference = float((outputs - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:  # also refuses nan
        raise ValueError(
            f"outputs differ from AIMET's by {difference:.2e} of the largest; at most {TOLERANCE}"
        )


def rebuild(network: nn.Module, folder: Path, ratio: float) -> nn.Module:
    """The network as AIMET compressed it.

    Args:
        network: the original, with any weights; not changed.
        folder: the ``out`` of the job that ``run.py`` ran.
        ratio: one of the job's ``ratios``.

    Returns:
        A new network in eval mode, whose outputs were compared with those of AIMET's own.

    Raises:
        FileNotFoundError: AIMET made no network at this ratio; ``report.json`` says why.
        ValueError: another format, or outputs that differ.
    """
    stem = file_stem(folder, ratio)
    listing = json.loads(Path(f"{stem}.json").read_text())
    if listing["format"] != FORMAT:
        raise ValueError(f"{stem}.json has format {listing['format']}; this reads format {FORMAT}")
    compressed = build(network, listing["layers"])
    compressed.load_state_dict(load_file(f"{stem}.safetensors"))
    check = load_file(f"{stem}.check.safetensors")
    check_outputs(compressed, check["images"], check["outputs"])
    return compressed
