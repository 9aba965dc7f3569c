# SPDX-License-Identifier: Apache-2.0
"""The saved model: weights, plan, manifest and report in one directory."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from slimrank._errors import FileError, NotEmptyError, PlanError
from slimrank.capture import describe_layers
from slimrank.cost import carries_mean, gains_bias
from slimrank.files import Json, Store, check_folder, check_format, read_text, write_bytes
from slimrank.fitting import empty_replacement_in, layer_tasks
from slimrank.methods import has_bias_in, is_replaced_in
from slimrank.plan import Plan, check_structure, structure_of
from slimrank.surgery import (
    bias_of,
    copy_model,
    dense_weight,
    drop_blocks,
    flatten_recurrent,
    fold_as_planned,
    named_layer,
    replace_module,
    set_weights,
    slim,
)
from slimrank.tensors import digest_file, read_tensors, write_tensors

# Written into each manifest; a higher number would keep older versions from misreading a new layout.
MODEL_FORMAT = 1
# Fixed names: a directory is known as a saved model by its weights and its manifest.
PLAN_FILE, REPORT_FILE = "plan.json", "report.html"
WEIGHTS_FILE, MANIFEST_FILE = "model.safetensors", "manifest.json"
# In the manifest: the other files of the model, name -> digest.
OWN_FILES = "files_sha256"


def save_artifact(
    path: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan,
    manifest: Mapping[str, Json],
    report: str,
    *,
    overwrite: bool,
    write_more: Callable[[Path], Mapping[str, Json]] | None = None,
) -> None:
    """Writes a compressed model to a directory, whole or not at all.

    Args:
        path: the directory.
        model: the compressed model.
        plan: that it was made by.
        manifest: facts to keep beside the model.
        report: HTML.
        overwrite: replace a saved model; files of other names stay.
        write_more: as in ``write_artifact``; None for no more files.

    Raises:
        NotEmptyError: the directory holds something, and ``overwrite`` is False or it is no saved model.
        FileError: it cannot be written, or the model holds state that is not a tensor.
    """

    def write_report(draft: Path) -> Mapping[str, Json]:
        write_bytes(draft / REPORT_FILE, report.encode())
        return {} if write_more is None else write_more(draft)

    write_artifact(path, model, plan, manifest, write_report, overwrite=overwrite)


def write_artifact(
    path: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan,
    manifest: Mapping[str, Json],
    write_more: Callable[[Path], Mapping[str, Json]],
    *,
    overwrite: bool,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes weights, plan, manifest and more files to a directory, whole or not at all.

    Args:
        path: the directory.
        model: the compressed model.
        plan: that it was made by.
        manifest: facts to keep beside the model.
        write_more: writes the other files into the folder that it gets, and returns facts to add to the
            manifest. ``OWN_FILES`` among them names these files, where a later save is to remove them.
        overwrite: replace a saved model; files that slimrank did not write stay.
        check: of the complete folder, before it takes its place.

    Raises:
        NotEmptyError: the directory holds something, and ``overwrite`` is False or it is no saved model.
        FileError: it cannot be written, or the model holds state that is not a tensor.
        SlimrankError: of ``write_more`` and ``check``.
    """
    target = Path(path).resolve()
    check_target(target, overwrite=overwrite)
    tensors, aliases = _state_of(model)
    # Beside the target, on the same file system, so that a rename moves it.
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    store = Store(draft)
    try:
        write_tensors(
            store.path_of(WEIGHTS_FILE),
            tensors,
            {"format": "pt", "aliases": json.dumps(aliases, sort_keys=True)},
        )
        plan.save(draft / PLAN_FILE)
        facts: dict[str, Json] = {
            **manifest,
            **write_more(draft),
            "format": MODEL_FORMAT,
            "weights_sha256": digest_file(draft / WEIGHTS_FILE),
        }
        store.write_json(MANIFEST_FILE, facts)
        if check is not None:
            check(draft)
        _move_into_place(draft, target)
    except OSError as error:
        raise FileError(
            f"{target} cannot be written ({error}); give a directory with room and rights"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def update_artifact(
    path: str | os.PathLike[str],
    change: Callable[[Mapping[str, Json], str | None], tuple[Mapping[str, Json], str | None]],
) -> None:
    """Changes manifest and report of a saved model, both or none; they can be read at any time.

    Args:
        path: a directory that ``save_artifact`` wrote.
        change: from the manifest and the report, None where that is gone, to the new ones.

    Raises:
        FileError: a file cannot be read or written, or the manifest is of another version.
        SlimrankError: of ``change``.
    """
    root = Path(path)
    store, report = Store(root), root / REPORT_FILE
    old_html = None
    if report.is_file():
        advice = "delete it or restore a copy"
        old_html = read_text(report, f"report {report}", advice=advice, error=FileError)
    manifest, html = change(read_manifest(root), old_html)
    if html is not None and html != old_html:
        write_bytes(report, html.encode())
    try:
        store.write_json(MANIFEST_FILE, dict(manifest))
    except BaseException:
        if old_html is not None:
            write_bytes(report, old_html.encode())
        raise


def read_manifest(root: Path) -> dict[str, Json]:
    """The manifest of a saved model.

    Args:
        root: directory of the model.

    Returns:
        What it holds.

    Raises:
        FileError: it is missing, truncated, or of another version.
    """
    manifest = Store(root).read_json(MANIFEST_FILE)
    check_format(
        manifest.get("format"),
        MODEL_FORMAT,
        where=str(root / MANIFEST_FILE),
        advice="use the version of slimrank that wrote it",
    )
    return manifest


def check_target(
    target: Path, *, overwrite: bool, where: str = "", how_to_overwrite: str = "pass overwrite=True"
) -> None:
    """Refuses a directory that a model cannot be saved in: what is no saved model is never replaced.

    Args:
        target: the directory.
        overwrite: a saved model in it may be replaced.
        where: what the directory was given as, for the message.
        how_to_overwrite: what the message advises.

    Raises:
        FileError: the folder that it would lie in is not there.
        NotEmptyError: it is a file, or holds something and ``overwrite`` is False or it is no saved model.
    """
    check_folder(target, where)
    if not target.exists():
        return
    named = f"{where} {target}".lstrip()
    if not target.is_dir():
        raise NotEmptyError(f"{named} is a file; give a directory")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise NotEmptyError(f"{named} is not empty; give another directory or {how_to_overwrite}")
    if not is_saved_model(target):
        raise NotEmptyError(f"{named} holds files but no saved model to replace; give another directory")


def is_saved_model(directory: Path) -> bool:
    """Whether ``save_artifact`` wrote a model there."""
    return (directory / MANIFEST_FILE).is_file() and (directory / WEIGHTS_FILE).is_file()


def load_artifact(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Rebuilds a compressed model on a freshly built original.

    Args:
        path: a directory that ``save_artifact`` wrote.
        model: the original architecture, any weights; it is copied.

    Returns:
        The compressed model with its weights, in eval mode, on the device of ``model``.

    Raises:
        FileError: a file is missing, truncated or altered.
        PlanError: the directory belongs to another model.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileError(f"{root} is no directory; give one that result.save() wrote")
    manifest = read_manifest(root)
    plan = Plan.load(root / PLAN_FILE)
    state = read_state(root, manifest)
    rebuilt = copy_model(model)
    if plan.steps:
        fold_as_planned(rebuilt, plan.steps[0].structure.layers)
    check_structure(plan, structure_of(describe_layers(rebuilt)))
    for count, step in enumerate(plan.steps, start=1):
        so_far = plan.up_to(count)
        slim(rebuilt, step.structure.channels, step.groups)
        drop_blocks(rebuilt, step.dropped, step.structure.channels.blocks)
        for name in step.settings:
            layer = named_layer(rebuilt, name)
            container = empty_replacement_in(step, name, layer, has_bias=_has_bias(so_far, name, state))
            container = container.to_empty(device=_layer_device(layer))
            container.requires_grad_(requires_grad=all(p.requires_grad for p in layer.parameters()))
            replace_module(rebuilt, name, container)
        _add_biases(rebuilt, so_far, state)
    return _loaded(rebuilt, state, root)


def load_weights(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Gives the weights of a saved model to one that is built as it already (in place).

    Args:
        path: a directory that ``save_artifact`` wrote.
        model: the compressed architecture, any weights.

    Returns:
        The model, in eval mode.

    Raises:
        FileError: a file is missing, truncated or altered.
        PlanError: the directory belongs to another model.
    """
    root = Path(path)
    return _loaded(model, read_state(root, read_manifest(root)), root)


def read_state(root: Path, manifest: Mapping[str, Json]) -> dict[str, Tensor]:
    """The state dict of a saved model, on the CPU.

    Args:
        root: directory of the model.
        manifest: of the model.

    Returns:
        Tensors by name; names that share one have the same object.

    Raises:
        FileError: the weights are missing, truncated or altered.
    """
    weights = root / WEIGHTS_FILE
    tensors = read_tensors(weights)
    if digest_file(weights) != manifest.get("weights_sha256"):
        raise FileError(f"{weights} was altered after it was saved; restore a copy or compress again")
    aliases = _aliases_of(weights)
    return tensors | {name: tensors[first] for name, first in aliases.items() if first in tensors}


def check_own_files(root: Path, digests: Mapping[str, Json]) -> None:
    """Refuses a saved model of which a file beside the weights is gone or was changed.

    Args:
        root: directory of the model.
        digests: of these files, by name, as the manifest has them.

    Raises:
        FileError: with the file.
    """
    for file, digest in digests.items():
        if not (root / file).is_file():
            raise FileError(f"{root / file} is missing; restore a copy or compress again")
        if digest_file(root / file) != digest:
            raise FileError(f"{root / file} was altered after it was saved; restore a copy or compress again")


def _add_biases(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Gives layers that the last step fitted anew the bias that this made, at zero (in place)."""
    for name, task in layer_tasks(plan).items():
        layer = named_layer(model, name)
        if task.setting is not None:
            continue
        # The saved tensors show whether there is a bias; the pair of a later step has taken it over.
        plan_has_bias = f"{name}.bias" in tensors or (is_replaced_in(tensors, name) and plan.has_bias)
        has_bias, has_norm = bias_of(layer) is not None, task.norm is not None
        if gains_bias(has_bias=has_bias, has_norm=has_norm, plan_has_bias=plan_has_bias):
            weight = dense_weight(layer)
            set_weights(layer, weight, weight.new_zeros(task.n_channels))


def _has_bias(plan: Plan, name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the replacement of a layer has a bias, or had one before a later step replaced it in turn."""
    step = plan.steps[-1]
    known = has_bias_in(tensors, name, step.settings[name])
    if known is not None:
        return known
    return carries_mean(has_bias=step.structure.layers[name].has_bias, plan_has_bias=plan.has_bias)


def _layer_device(layer: nn.Module) -> torch.device:
    return next((p.device for p in layer.parameters()), torch.device("cpu"))


def _state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to save, each storage once, and the names that share one."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise FileError(
                f"{name} is a {type(value).__name__}, not a tensor; it cannot be saved without pickle: "
                "drop the extra state of that module first"
            )
        # Equal in all four: the same view of the same memory.
        key = (value.data_ptr(), int(value.storage_offset()), tuple(value.shape), tuple(value.stride()))
        if value.numel() and key in first_name:
            aliases[name] = first_name[key]
            continue
        first_name[key] = name
        tensors[name] = value
    return tensors, aliases


def _aliases_of(weights: Path) -> dict[str, str]:
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata() or {}
    aliases = json.loads(metadata.get("aliases", "{}"))
    return {str(name): str(first) for name, first in aliases.items()}


def _loaded(model: nn.Module, state: Mapping[str, Tensor], root: Path) -> nn.Module:
    _load_state(model, state, root)
    model.eval()
    flatten_recurrent(model)
    return model


def _load_state(model: nn.Module, state: Mapping[str, Tensor], root: Path) -> None:
    rebuilt_state = model.state_dict()
    missing = sorted(rebuilt_state.keys() - state.keys())
    extra = sorted(state.keys() - rebuilt_state.keys())
    shapes = sorted(
        name
        for name in rebuilt_state.keys() & state.keys()
        if tuple(rebuilt_state[name].shape) != tuple(state[name].shape)
    )
    if missing or extra or shapes:
        parts = [
            f"{count} {word} ({', '.join(names[:5])}{', ...' if count > 5 else ''})"
            for word, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
            if (count := len(names))
        ]
        raise PlanError(
            f"{root} does not fit {type(model).__name__}: tensors {', '.join(parts)}; "
            "build the model that was compressed"
        )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Loading would convert to the dtype of the model, and so might round.
        if parameter.dtype != state[name].dtype:
            parameter.data = parameter.data.to(state[name].dtype)
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in module._buffers.items():
            saved = state.get(f"{name}.{key}" if name else key)
            if buffer is not None and saved is not None:
                module._buffers[key] = buffer.to(saved.dtype)
    # The state dict of the model itself is filled: it has the versions that some modules need to load.
    rebuilt_state.update(state)
    model.load_state_dict(rebuilt_state)


def _move_into_place(draft: Path, target: Path) -> None:
    """The draft under its final name; where that fails, the old directory is put back."""
    stale = _own_files(target) - {file.name for file in draft.iterdir()}
    if target.is_dir() and target in (Path.cwd(), *Path.cwd().parents):
        # The working directory cannot be exchanged, so its files are; the manifest, which holds the digest of
        # the weights, goes last.
        for item in sorted(draft.iterdir(), key=lambda item: item.name == MANIFEST_FILE):
            if item.is_dir() and (target / item.name).is_dir():
                shutil.rmtree(target / item.name)
            item.replace(target / item.name)
        for name in stale:
            (target / name).unlink(missing_ok=True)
        return
    if not target.exists():
        draft.replace(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.replace(old)
    try:
        draft.replace(target)
    except OSError:
        old.replace(target)
        raise
    if not old.is_dir():
        old.unlink()
        return
    for item in old.iterdir():
        if not (target / item.name).exists() and item.name not in stale:
            item.replace(target / item.name)
    shutil.rmtree(old)


def _own_files(target: Path) -> set[str]:
    """Names of the files in a saved model that slimrank wrote; none where there is no saved model."""
    if not is_saved_model(target):
        return set()
    named = Store(target).read_json(MANIFEST_FILE).get(OWN_FILES)
    names = named if isinstance(named, dict) else {}
    # A name with a folder in it is none that a save wrote.
    own = {name for name in names if Path(name).name == name}
    return own | {WEIGHTS_FILE, PLAN_FILE, REPORT_FILE, MANIFEST_FILE}
