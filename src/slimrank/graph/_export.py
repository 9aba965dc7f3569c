# SPDX-License-Identifier: Apache-2.0
"""The exported graph, read for what hooks cannot see: weights that are used outside their own layer."""

import logging
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from slimrank.graph._batch import Batch

_log = logging.getLogger(__name__)


def read_weight_uses(model: nn.Module, sample: Batch) -> tuple[Mapping[str, str], str | None]:
    """Which operations read each parameter.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        "aten.linear in module 'attn'" by parameter name, and why the export failed (None where it did not).
    """
    try:
        # The exporter warns about the user's code; what matters of it is in the answer.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, sample.args, dict(sample.kwargs), strict=False)
    except Exception as error:
        _log.debug("torch.export failed", exc_info=True)
        return {}, f"{type(error).__name__}: {error}".splitlines()[0][:160]
    names = dict(program.graph_signature.inputs_to_parameters)
    uses: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        for user in node.users:
            stack = user.meta.get("nn_module_stack") or {}
            inside = next(reversed(stack.values()))[0] if stack else ""
            uses[names[node.name]] = f"{user.target} in {inside or 'the model itself'}"
            break
    return uses, None
