# SPDX-License-Identifier: Apache-2.0
"""What a study is tied to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from slimrank.calibrate import Likelihood, readings_tried
from slimrank.capture import describe_layers
from slimrank.forward import OutputChoice, path_within
from slimrank.plan import Plan, structure_of
from slimrank.records import Family, Note
from slimrank.survey._session import DataSource, Session, likelihood_on
from slimrank.tensors import describe, digest_tensors


def fingerprint_of(session: Session, model: nn.Module, previous: Plan | None) -> dict[str, str]:
    """Digests by topic: two studies with the same ones measure the same.

    Args:
        session: data, outputs and options.
        model: the caller's, which the session has a copy of.
        previous: the plan that made the model, where it was compressed before.

    Returns:
        SHA-256 of structure, weights, modules, inputs, options and outputs, and of the steps before.
    """
    # Strides and the like change what a model computes, and no tensor shows them.
    kinds = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
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
        "outputs": _digest(
            session, {path: output.family for path, output in session.likelihood.outputs.items()}
        ),
    }


def read_as_stored(session: Session, source: DataSource, stored: Mapping[str, object]) -> Session:
    """A session whose outputs are read as in a study on disk, should "auto" read them otherwise by now.

    Args:
        session: just opened.
        source: its data.
        stored: the fingerprint of the study on disk; empty for none.

    Returns:
        The session; as it is where no reading fits the study.
    """
    digest, paths = stored.get("outputs"), list(session.likelihood.outputs)
    families = {path: output.family for path, output in session.likelihood.outputs.items()}
    if digest is None or session.options.likelihood != "auto" or _digest(session, families) == digest:
        return session
    for tried in readings_tried(paths):
        if _digest(session, tried) == digest:
            likelihood = _read_as(session, source, tried)
            others = [note for note in session.notes if note.where != "outputs"]
            now = "; ".join(session.likelihood.reasons)
            text = (
                "the study on disk was made with likelihood='auto' when it read "
                + ", ".join(f"{path or 'the output'} as {family}" for path, family in tried.items())
                + f", and goes on so; by now it reads {now}; to have that, study again in another directory"
            )
            return replace(session, likelihood=likelihood, notes=(*others, Note(where="outputs", text=text)))
    return session


def _read_as(session: Session, source: DataSource, families: Mapping[str, Family]) -> Likelihood:
    options = replace(session.options, likelihood=families.get("", families))
    return likelihood_on(session.original, session.feed, source, options)


def _in_one_form(outputs: OutputChoice) -> object:
    """Keys and indices as they also come out of a file: a list and a tuple are the same choice."""
    return tuple(outputs) if isinstance(outputs, Sequence) and not isinstance(outputs, str) else outputs


def _digest(session: Session, families: Mapping[str, Family]) -> str:
    """Digest of which outputs matter and how they are read."""
    outputs, likelihood = session.outputs, session.likelihood
    # A key or an index did not stand before the paths when fingerprints were made first.
    picked: tuple[object, ...] = (
        describe(outputs) if callable(outputs) else _in_one_form(outputs),
        [
            (path_within(path, outputs), family, likelihood.outputs[path].shape)
            for path, family in families.items()
        ],
    )
    if session.options.weights is not None:
        picked += (("weights", session.options.weights),)
    if likelihood.loss is not None:
        picked += (("loss", describe(likelihood.loss.function)),)
    return hashlib.sha256(repr(picked).encode()).hexdigest()
