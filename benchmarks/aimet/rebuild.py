# SPDX-License-Identifier: Apache-2.0
"""Makes the networks that ``run.py`` had AIMET compress again, with torch and safetensors alone."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FORMAT = 1
TOLERANCE = 1e-4
SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


class Downsample(nn.Module):
    """Takes the named channels, as AIMET's layer of this kind does before a pruned convolution."""

    def __init__(self, kept: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The channels kept.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, kept, H, W).
        """
        return x[:, self.kept]


class Upsample(nn.Module):
    """Puts channels back to their places among zeros, as AIMET's layer of this kind does."""

    def __init__(self, kept: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kept", torch.tensor(kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """All channels.

        Args:
            x: (N, kept, H, W).

        Returns:
            (N, channels, H, W).
        """
        out = x.new_zeros(len(x), self.channels, *x.shape[2:])
        out[:, self.kept] = x
        return out


KINDS: dict[str, type[nn.Module]] = {
    "Conv2d": nn.Conv2d,
    "Linear": nn.Linear,
    "BatchNorm2d": nn.BatchNorm2d,
    "Downsample": Downsample,
    "Upsample": Upsample,
}


def file_stem(folder: Path, ratio: float) -> str:
    """How the files of one compressed network begin.

    Args:
        folder: the job's ``out``.
        ratio: as asked for in the job.

    Returns:
        The path up to ``.json``, ``.safetensors`` (weights) and ``.check.safetensors`` (images, outputs).
    """
    return str(folder / f"compressed-{ratio:g}")


def build(
    network: nn.Module,
    layers: Mapping[str, Sequence[Mapping[str, object]]],
    sizes: Mapping[str, Mapping[str, int]],
) -> nn.Module:
    """A copy of the network in which named layers are several, or smaller; their weights are still at random.

    Args:
        network: the original; not changed.
        layers: dotted name to what stands for it, each the keyword arguments of a module and its ``kind``.
        sizes: dotted name to those of ``SIZES`` that changed.

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
    for name, changed in sizes.items():
        module = compressed.get_submodule(name)
        for attribute, size in changed.items():
            setattr(module, attribute, size)
    return compressed


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a network its parameters and buffers, of whatever shape they are.

    Args:
        network: changed.
        state: as ``network.state_dict()`` names them, all of them.
    """
    for name, old in network.state_dict(keep_vars=True).items():
        parent, _, attribute = name.rpartition(".")
        new = state[name].to(old.dtype)
        holder = network.get_submodule(parent)
        setattr(holder, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


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
    compressed = build(network, listing["layers"], listing.get("sizes", {}))
    fill(compressed, load_file(f"{stem}.safetensors"))
    check = load_file(f"{stem}.check.safetensors")
    check_outputs(compressed, check["images"], check["outputs"])
    return compressed
