# SPDX-License-Identifier: Apache-2.0
"""The exported graph, read for what hooks cannot see: weights that are used outside their own layer."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from slimrank.forward import Batch

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
        with _quiet(), torch.no_grad():
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
            # The first reader is enough for a reason.
            break
    return uses, None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporter says of the user's code from the terminal; what matters is in the answer.

    It warns, it logs, and it prints the graph that it has got so far to stderr.
    """
    torch_log = logging.getLogger("torch")
    level = torch_log.level
    said = io.StringIO()
    try:
        # Loggers below it that TORCH_LOGS has switched on have a level of their own, and go on.
        torch_log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_log.setLevel(level)
        if said.tell():
            _log.debug("torch.export printed: %s", said.getvalue())
