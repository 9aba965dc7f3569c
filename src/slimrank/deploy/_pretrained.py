# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, saved so that they can be built again from their directory alone."""

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from slimrank._errors import FileError, ModelError, OptionError, SlimrankError
from slimrank.deploy._followed_config import (
    Config,
    fields_that_differ,
    followed_configs,
    is_same_model,
    why_not_followed,
)
from slimrank.deploy._packages import import_package
from slimrank.deploy._saved_model import (
    MANIFEST_FILE,
    OWN_FILES,
    PLAN_FILE,
    WEIGHTS_FILE,
    check_own_files,
    load_artifact,
    load_weights,
    read_manifest,
    write_artifact,
)
from slimrank.files import Json, Store
from slimrank.forward import Batch
from slimrank.plan import Plan
from slimrank.tensors import digest_file, read_tensors, write_tensors

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
# The configuration that the plan starts from; config.json is that of the compressed model.
ORIGINAL_CONFIG_FILE = "original_config.json"
# Buffers that are in no state dict: the model may have other ones than its configuration gives.
BUFFERS_FILE = "buffers.safetensors"
# Of the manifest: class of the model, and how it computes attention.
_FACTS, _CLASS, _ATTENTION = "pretrained", "class", "attention"
# Of the manifest, too: whether transformers alone builds the model, from config.json.
_IS_ORDINARY = "is_ordinary"
# Of a model that was built from config.json: the fingerprint and the configuration of the original, for a
# plan of several steps that starts there.
_ORIGINAL = "_slimrank_original"
# transformers takes the name of the weights file from this field, and refuses what is no name of one: so it
# says what to call instead of drawing weights anew for the layers that it does not know.
_WEIGHTS_FIELD = "transformers_weights"
_REFUSAL = "(none: this model was compressed by slimrank; load it by slimrank.from_pretrained(directory))"
# What a directory must not hold: files that run code when they are read.
_CODE = (".py", ".pyc", ".so", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib")


_LOG = logging.getLogger("slimrank.pretrained")


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer, a processor, or whatever of transformers goes with a model and is saved beside it."""

    def save_pretrained(self, save_directory: str) -> object:
        """Writes its files."""
        ...


def save_pretrained_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan,
    manifest: Mapping[str, Json],
    *,
    tokenizer: Tokenizer | None,
    overwrite: bool,
    wants_ordinary: bool,
    batch: Batch | None = None,
) -> None:
    """Writes a compressed model of transformers to a directory, whole or not at all.

    Args:
        path: the directory.
        model: the compressed model.
        plan: that it was made by.
        manifest: facts to keep beside the model.
        tokenizer: saved beside it; None for none.
        overwrite: replace a saved model; files that slimrank did not write stay.
        wants_ordinary: it was planned for transformers alone to load it: log a warning if that cannot.
        batch: to see on it that what transformers alone loads computes the same; None for none.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelError: no model of a class of transformers, or one that its configuration does not build.
        OptionError: a tokenizer that cannot be saved, or that needs code of its own.
        NotEmptyError: the directory holds something, and ``overwrite`` is False or it is no saved model.
        FileError: it cannot be written.
    """
    transformers = _transformers("save_pretrained")
    _check_savable(transformers, model, tokenizer)
    name = type(model).__name__
    reasons: list[str] = []

    def write_more(draft: Path) -> Mapping[str, Json]:
        if tokenizer is not None:
            _save_tokenizer(tokenizer, draft)
        original = _original_config(model, plan)
        original.to_json_file(str(draft / ORIGINAL_CONFIG_FILE), use_diff=False)
        config = _followed_config(draft, model, plan, original, batch)
        is_ordinary = config is not None
        if config is None:
            reasons.append(why_not_followed(model, plan, original))
            config = copy.deepcopy(original)
            setattr(config, _WEIGHTS_FIELD, _REFUSAL)
        config.to_json_file(str(draft / CONFIG_FILE))
        if model.can_generate():  # type: ignore[operator]
            _save_generation(model, draft)
        write_tensors(
            Store(draft).path_of(BUFFERS_FILE),
            {name: buffer for name, _, _, buffer in _unsaved_buffers(model)},
        )
        return {
            _FACTS: {
                _CLASS: name,
                _ATTENTION: getattr(model.config, "_attn_implementation", None),
                _IS_ORDINARY: is_ordinary,
            },
            OWN_FILES: {
                file: digest_file(draft / file)
                for file in sorted(_files_in(draft))
                if file not in (WEIGHTS_FILE, MANIFEST_FILE)
            },
        }

    def check(draft: Path) -> None:
        try:
            load_pretrained_model(draft)
        except SlimrankError as error:
            raise ModelError(
                f"model: what its configuration builds is not the {name} that was compressed ({error}); save "
                "it by result.save(), and read it by slimrank.load(directory, model=) with a freshly built "
                "model"
            ) from error

    write_artifact(path, model, plan, manifest, write_more, overwrite=overwrite, check=check)
    _tell(path, reasons, wants_ordinary=wants_ordinary)


def load_pretrained_model(path: str | os.PathLike[str]) -> nn.Module:
    """Builds a compressed model of transformers from its directory alone.

    Args:
        path: a directory that ``save_pretrained_model`` wrote.

    Returns:
        The model with its weights in the dtypes that were saved, in eval mode, on the CPU.

    Raises:
        MissingPackageError: transformers is not installed.
        FileError: no such directory, or a file in it is missing, truncated or altered.
        PlanError: plan and weights do not fit what the configuration builds.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileError(f"{root} is no directory; give one that result.save_pretrained() wrote")
    manifest = read_manifest(root)
    facts, digests = manifest.get(_FACTS), manifest.get(OWN_FILES)
    if not isinstance(facts, dict) or not isinstance(digests, dict):
        raise FileError(
            f"{root} holds no model that result.save_pretrained() wrote; read what result.save() wrote by "
            "slimrank.load(directory, model=)"
        )
    check_own_files(root, digests)
    transformers = _transformers("from_pretrained")
    model_class = _class_in(transformers, root, facts)
    original = model_class.config_class.from_pretrained(root / ORIGINAL_CONFIG_FILE)
    if facts.get(_IS_ORDINARY):
        # So its configuration says what it is, also where transformers trains and saves it.
        config = model_class.config_class.from_pretrained(root)
        model = load_weights(root, _built(model_class, config, facts))
        steps = Plan.load(root / PLAN_FILE).steps
        setattr(model, _ORIGINAL, (steps[0].structure.sha256 if steps else None, original))
    else:
        model = load_artifact(root, _built(model_class, original, facts))
    for name, module, key, buffer in list(_unsaved_buffers(model)):
        saved = read_tensors(root / BUFFERS_FILE)
        if name not in saved:
            raise FileError(
                f"{root / BUFFERS_FILE} has no {name}, which this version of transformers has "
                f"({transformers.__version__}); use the version that the model was saved with"
            )
        module._buffers[key] = saved[name].to(buffer.device)
    if GENERATION_FILE in digests:
        model.generation_config = transformers.GenerationConfig.from_pretrained(root)
    return model


def _check_savable(transformers: ModuleType, model: nn.Module, tokenizer: Tokenizer | None) -> None:
    name = type(model).__name__
    if not isinstance(model, transformers.PreTrainedModel):
        raise ModelError(
            f"model is a {name}, no model of transformers; save it by result.save(), and read it by "
            "slimrank.load(directory, model=) with a freshly built model"
        )
    if getattr(transformers, name, None) is not type(model):
        raise ModelError(
            f"model is a {name}, a class of its own ({type(model).__module__}): it cannot be built without "
            "its code, and no saved model holds code; save it by result.save(), and read it by "
            "slimrank.load(directory, model=) with a freshly built model"
        )
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise OptionError(
            f"tokenizer is a {type(tokenizer).__name__}, which cannot be saved; give a tokenizer or a "
            "processor of transformers"
        )


def _tell(path: str | os.PathLike[str], reasons: Sequence[str], *, wants_ordinary: bool) -> None:
    """Logs whether transformers alone loads what was saved; reasons are why not."""
    if not reasons:
        _LOG.info("%s: plain AutoModel.from_pretrained loads it, too", path)
    for reason in reasons:
        _LOG.log(
            logging.WARNING if wants_ordinary else logging.INFO,
            "%s: plain AutoModel.from_pretrained cannot load it, slimrank.from_pretrained does: %s",
            path,
            reason,
        )


def _transformers(what: str) -> ModuleType:
    return import_package("transformers", extra="hf", what=what)


def _class_in(transformers: ModuleType, root: Path, facts: Mapping[str, Json]) -> Any:  # noqa: ANN401 - transformers is optional
    """The class of the model."""
    name = facts.get(_CLASS)
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise FileError(
            f"{root}: transformers {transformers.__version__} has no model class {name!r}; use the version "
            "that the model was saved with"
        )
    return found


def _built(model_class: Any, config: Any, facts: Mapping[str, Json]) -> nn.Module:  # noqa: ANN401
    """The architecture of a configuration, with any weights."""
    # Where torch's fused kernel was not used on purpose; any other choice is for the machine that loads it.
    if facts.get(_ATTENTION) == "eager":
        config._attn_implementation = "eager"
    initialization = import_package("transformers.initialization", extra="hf", what="from_pretrained")
    with initialization.no_init_weights():
        model: nn.Module = model_class(config)
    # It is part of what was left out.
    model.tie_weights()  # type: ignore[operator]
    return model


def _original_config(model: nn.Module, plan: Plan) -> Config:
    """That of the model which the first step of the plan starts from."""
    start, original = getattr(model, _ORIGINAL, (None, None))
    is_kept = original is not None and bool(plan.steps) and plan.steps[0].structure.sha256 == start
    config: Config = copy.deepcopy(original if is_kept else model.config)  # type: ignore[assignment]
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    return config


def _followed_config(
    draft: Path, model: nn.Module, plan: Plan, original: Config, batch: Batch | None
) -> Config | None:
    """The configuration from which transformers alone loads the model exactly; None where there is none."""
    for config in followed_configs(model, plan, original):
        config.to_json_file(str(draft / CONFIG_FILE))
        with _without_progress_bars():
            loaded = type(model).from_pretrained(draft)  # type: ignore[attr-defined]
        if is_same_model(loaded, model, batch, fields_that_differ(original, config)):
            return config
    return None


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    logging = import_package("transformers.utils.logging", extra="hf", what="save_pretrained")
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _save_tokenizer(tokenizer: Tokenizer, draft: Path) -> None:
    before = set(_files_in(draft))
    tokenizer.save_pretrained(str(draft))
    code = sorted(file for file in set(_files_in(draft)) - before if file.endswith(_CODE))
    if code:
        raise OptionError(
            f"tokenizer writes {', '.join(code)}: a saved model holds no code; save this tokenizer apart"
        )


def _save_generation(model: nn.Module, draft: Path) -> None:
    try:
        model.generation_config.save_pretrained(draft)  # type: ignore[operator, union-attr]
    except ValueError as error:
        raise ModelError(
            f"model.generation_config: transformers does not save it ({error}); correct these values first"
        ) from error


def _files_in(root: Path) -> Iterator[str]:
    return (item.relative_to(root).as_posix() for item in root.rglob("*") if item.is_file())


def _unsaved_buffers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Buffers that are in no state dict: name, module, name in the module, value."""
    for path, module in model.named_modules():
        for key in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(key)
            if buffer is not None:
                yield f"{path}.{key}" if path else key, module, key, buffer
