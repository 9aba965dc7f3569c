# SPDX-License-Identifier: Apache-2.0
"""What a study is tied to."""

import hashlib

from torch import Tensor, nn

from slimrank.capture import describe_layers
from slimrank.plan import Plan, structure_of
from slimrank.store import describe, digest_tensors
from slimrank.survey._session import Session


def fingerprint_of(session: Session, model: nn.Module, previous: Plan | None) -> dict[str, str]:
    """Digests by topic: two studies with the same ones measure the same.

    Args:
        session: data, outputs and options.
        model: the caller's, which the session has a copy of.
        previous: the plan that made the model, where it was compressed before.

    Returns:
        SHA-256 of structure, weights, modules, inputs, options and outputs, and of the steps before.
    """
    outputs = session.outputs
    # Strides and the like change what a model computes, and no tensor shows them.
    kinds = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    picked = (
        describe(outputs) if callable(outputs) else outputs,
        [(name, output.family, output.shape) for name, output in session.likelihood.outputs.items()],
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    earlier = {}
    if previous is not None:
        steps = [(step.structure.sha256, *step.key) for step in previous.steps]
        earlier["previous"] = hashlib.sha256(repr(steps).encode()).hexdigest()
    return earlier | {
        "structure": structure_of(describe_layers(model)).sha256,
        "weights": digest_tensors(tensors),
        "modules": hashlib.sha256(repr(kinds).encode()).hexdigest(),
        "inputs": session.feed.fingerprint,
        "options": hashlib.sha256(repr(session.options).encode()).hexdigest(),
        "outputs": hashlib.sha256(repr(picked).encode()).hexdigest(),
    }
