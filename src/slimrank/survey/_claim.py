# SPDX-License-Identifier: Apache-2.0
"""A run directory and a study: its own, another one, or one whose measurements are still valid in part."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from slimrank._names import listed
from slimrank.files import Store
from slimrank.measured import (
    BLOCK_DAMAGES_FILE,
    GRADIENT_FILE,
    MEASURED,
    Options,
    digests_in,
    fingerprint_in,
    layer_file,
    open_anew,
    options_in,
    refuse_other_study,
    write_fingerprint,
)
from slimrank.records import LayerSpec, Note, replaces_groups
from slimrank.survey._session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """How a study stands to its run directory.

    Attributes:
        is_read_only: the directory is that of a study of more methods, and stays it.
        notes: what was taken over of another study, and what was not.
    """

    is_read_only: bool = False
    notes: tuple[Note, ...] = ()


def claim(store: Store, fingerprint: Mapping[str, str], session: Session) -> Claim:
    """Ties a run directory to a study, or finds it tied to this one, or to one that serves it.

    A study of fewer methods or of fewer batches becomes this one: what it measured and what is still valid
    stays. A study of more methods serves this one, and stays.

    Args:
        store: the directory.
        fingerprint: of the study.
        session: of the study.

    Returns:
        What was found.

    Raises:
        StudyError: it is tied to another study.
        FileError: it is of another format.
    """
    stored = fingerprint_in(store)
    options, digests = session.options, session.feed.digests
    if stored is None:
        write_fingerprint(store, fingerprint, options, digests)
        return Claim()
    differing = [key for key, value in fingerprint.items() if stored.get(key) != value]
    if not differing:
        return Claim()
    there, known = options_in(store), digests_in(store)
    earlier = None if there is None or replace(there, methods=options.methods) != options else there.methods
    has_more_batches = known is not None and digests[: len(known)] == known and len(digests) > len(known)
    has_other_methods = "options" in differing
    is_known = not has_other_methods or earlier is not None
    is_known = is_known and ("inputs" not in differing or has_more_batches)
    if set(differing) - {"options", "inputs"} or not is_known:
        refuse_other_study(store, differing, options, _batches_text(known, digests))
    if earlier is None:
        earlier = options.methods
    if differing == ["options"] and set(options.methods) < set(earlier):
        text = (
            f"{store.root} holds a study of the methods {', '.join(earlier)}: what it measured of fewer is "
            "taken over, damages anchored by all of them, and the directory stays the study of all"
        )
        return Claim(is_read_only=True, notes=(Note(where="run_dir", text=text),))
    if not set(options.methods) >= set(earlier):
        refuse_other_study(store, differing, options, _batches_text(known, digests))
    if "inputs" in differing:
        open_anew(store, MEASURED)
        text = (
            f"{store.root} held a study of the first {len(known or ())} of these {len(digests)} batches: all "
            "that it measured were means over its samples, and is measured anew over all of them"
        )
    else:
        text = _extend(store, session, earlier)
    write_fingerprint(store, fingerprint, options, digests)
    return Claim(notes=(Note(where="run_dir", text=text),))


def _batches_text(known: tuple[str, ...] | None, digests: tuple[str, ...]) -> str | None:
    """In what the batches of two studies differ."""
    if known is None or known == digests:
        return None
    same = next(
        (index for index, (one, other) in enumerate(zip(known, digests, strict=False)) if one != other),
        min(len(known), len(digests)),
    )
    return f"{len(known)} batches there and {len(digests)} here, of which the first {same} are alike"


def _extend(store: Store, session: Session, earlier: tuple[str, ...]) -> str:
    """Keeps of a study of fewer methods what more of them leave valid, and tells it."""
    layers, options = session.captured.layers, session.options
    kept = [index for index, spec in enumerate(layers) if not _new_methods(spec, options, earlier)]
    had_groups, has_groups = (
        any(replaces_groups(method) for method in methods) for methods in (earlier, options.methods)
    )
    gone = [layer_file(index) for index in range(len(layers)) if index not in kept]
    # Whether blocks are worth dropping depends on what else plans can do; what each drop costs does not.
    gone.append(BLOCK_DAMAGES_FILE)
    has_all_gradients = had_groups == has_groups and all(
        set(spec.methods) & set(earlier) for spec in layers if spec.methods
    )
    if not has_all_gradients:
        gone.append(GRADIENT_FILE)
    n_stored = sum(store.has(layer_file(index)) for index in kept)
    open_anew(store, gone)
    parts = [f"curves of {n_stored} layers"] if n_stored else []
    parts += ["gradients"] if store.has(GRADIENT_FILE) else []
    parts += ["channel groups"] if had_groups else []
    new = [spec.name for spec in layers if _new_methods(spec, options, earlier)]
    anew = [f"layers that take more methods now ({listed(new, 4)})"] if new else []
    anew += ["gradients, which more layers need now"] if not has_all_gradients else []
    return (
        f"{store.root} held a study of the methods {', '.join(earlier)}: {', '.join(parts) or 'nothing'} "
        f"taken over; measured anew: {', '.join(anew) or 'nothing'} (the divergences of a layer anchor all "
        "its methods together)"
    )


def _new_methods(spec: LayerSpec, options: Options, earlier: tuple[str, ...]) -> list[str]:
    """Methods that a layer takes now and did not in an earlier study."""
    return [method for method in options.methods if method in spec.methods and method not in earlier]
