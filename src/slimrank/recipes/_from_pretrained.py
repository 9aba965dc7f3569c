# SPDX-License-Identifier: Apache-2.0
"""Compressed models of transformers, built from their directory alone."""

import os

from torch import nn

from slimrank.deploy import load_pretrained_model


def from_pretrained(path: str | os.PathLike[str]) -> nn.Module:
    """Builds a compressed model of transformers from the directory that ``Result.save_pretrained`` wrote.

    Args:
        path: the directory; no name of a model on a hub, and nothing is downloaded.

    Returns:
        The model, of its class of transformers, with its weights in the dtypes that were saved, in eval mode,
        on the CPU.

    Raises:
        MissingPackageError: transformers is not installed.
        FileError: no such directory, or a file in it is missing, truncated or altered.
        PlanError: plan and weights do not fit what the configuration builds.
    """
    return load_pretrained_model(path)
