# SPDX-License-Identifier: Apache-2.0
"""The table of what users arrive with: what is done with it, or why not and what to do instead.

Plain modules have no row: they are taken as they are, those of timm, transformers, torchvision,
segmentation_models_pytorch and MONAI among them.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import torch
from torch import nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule

from slimrank._errors import ModelError
from slimrank.interop._kinds import class_name, is_kind
from slimrank.interop._offloaded import is_hooked, without_hook

# Where a format is looked for: in what the caller gave alone, in its modules, in its parameters.
Place = Literal["model", "module", "parameter"]

_FLOAT_FIRST = (
    "its weights are rounded already, and what is rounded cannot be decomposed; compress the float model "
    "first, then quantise the result"
)
_MERGED = "adapters of peft were merged into the weights of a copy; those of the given model are as they were"
_FILES = {
    ".onnx": "a file holds no modules; read it with slimrank.from_onnx(path), and give what it returns",
    ".pt2": "a program of torch.export holds operations in place of modules; give the nn.Module that it was "
    "exported from",
    ".safetensors": "a file of weights is no model; build the model and call "
    "model.load_state_dict(safetensors.torch.load_file(path))",
    ".gguf": "its weights are packed for one runtime; give the nn.Module with its float weights",
}
_WEIGHTS = (
    "a file is no model; build the model and call model.load_state_dict(torch.load(path)), or give "
    "torch.load(path, weights_only=False) of a whole model that you trust, or YOLO(path) of ultralytics"
)
_RUNTIME = "a file of a runtime holds no modules; give the nn.Module that it was made from"
_FILES |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _WEIGHTS)
_FILES |= dict.fromkeys((".pte", ".xml", ".engine", ".plan", ".tflite", ".mlmodel", ".mlpackage"), _RUNTIME)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Format:
    """Something that users bring for a model.

    Attributes:
        name: in words.
        is_it: whether a thing is that.
        place: where it is looked for.
        cure: why it is refused, and what to do instead: words, or a function of the thing; None where it is
            taken.
        unwrap: the module that a wrapper holds; None where it is no wrapper.
        change: makes of a module of a private copy what takes its place; None where nothing is to be done.
        changes_weights: ``change`` does it in place, so the copy needs weights of its own.
        plain_class: the class that a module had before it was changed to another one; None for as it is.
        note: what the user should know of what was done.
        can_export: it is refused where it would be compressed, and not where it is written to a file.
    """

    name: str
    is_it: Callable[[object], bool]
    place: Place = "model"
    cure: str | Callable[[object], str] | None = None
    unwrap: Callable[[nn.Module], object] | None = None
    change: Callable[[nn.Module], nn.Module] | None = None
    changes_weights: bool = False
    plain_class: Callable[[nn.Module], type[nn.Module]] | None = None
    note: str = ""
    can_export: bool = False


def kind(pattern: str) -> Callable[[object], bool]:
    """What tells things of a class whose full name begins as a pattern says."""

    def is_it(thing: object) -> bool:
        return is_kind(thing, pattern)

    return is_it


def _is_file(thing: object) -> bool:
    return isinstance(thing, str | os.PathLike) and _suffix(thing) in _FILES


def _suffix(thing: object) -> str:
    return PurePath(os.fspath(thing)).suffix.lower() if isinstance(thing, str | os.PathLike) else ""


def _is_state_dict(thing: object) -> bool:
    return isinstance(thing, dict) and any(isinstance(value, torch.Tensor) for value in thing.values())


def _is_class(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, nn.Module)


def _is_graph(thing: object) -> bool:
    """Whether a thing is a module made of a program of ``torch.export``: it calls operations of torch."""
    if not isinstance(thing, GraphModule):
        return is_kind(thing, r"torch\.export\.unflatten\.UnflattenedModule$")
    return any(
        node.op == "call_function" and isinstance(node.target, OpOverload) for node in thing.graph.nodes
    )


def _is_quantised(thing: object) -> bool:
    # Sums and products of values that are rounded elsewhere: they hold no weights.
    is_plain = is_kind(thing, r"torch\.ao\.nn\.quantized\.modules\.functional_modules\.(FX)?Float")
    return not is_plain and is_kind(thing, r"torch\.(ao\.nn|nn)\.(intrinsic\.|sparse\.)?quantized\.")


def _merged(adapted: nn.Module) -> nn.Module:
    """The network in a model of peft, its adapters added to its weights."""
    merge = getattr(adapted, "merge_and_unload", None)
    if merge is None:
        raise ModelError(
            f"model is a {class_name(adapted)}, whose adapters are no weights and cannot be merged (prompt "
            "or prefix tuning); compress the network without them, and tune it after that"
        )
    try:
        merged = merge()
    except Exception as error:
        raise ModelError(
            f"model is a {class_name(adapted)}, whose adapters cannot be merged ({error}); call "
            "merge_and_unload() yourself, on float weights, and give what it returns"
        ) from error
    return _checked_module(adapted, merged)


def _merged_layer(layer: nn.Module) -> nn.Module:
    """The layer in one of peft, its adapters added to its weight."""
    merge, base = getattr(layer, "merge", None), getattr(layer, "get_base_layer", None)
    if not callable(merge) or not callable(base):
        raise ModelError(
            f"model holds a {class_name(layer)}, whose adapter cannot be merged; merge it yourself and "
            "give the model without adapters"
        )
    merge()
    return _checked_module(layer, base())


def _checked_module(wrapper: nn.Module, inner: object) -> nn.Module:
    if not isinstance(inner, nn.Module):
        raise ModelError(
            f"model: in the {class_name(wrapper)} is a {class_name(inner)}; give a torch.nn.Module"
        )
    return inner


def _class_before_sharding(module: nn.Module) -> type[nn.Module]:
    """The class that ``fully_shard`` derived the class of a module from."""
    # It puts a class of its own before the module's in a new one.
    return next(base for base in type(module).__bases__ if issubclass(base, nn.Module))


def _attribute(name: str) -> Callable[[nn.Module], object]:
    def inner(wrapper: nn.Module) -> object:
        return getattr(wrapper, name)

    return inner


FORMATS: tuple[Format, ...] = (
    Format(
        name="a file",
        is_it=_is_file,
        cure=lambda thing: _FILES[_suffix(thing)],
    ),
    Format(
        name="a table of weights",
        is_it=_is_state_dict,
        cure="weights are no model; build the model and call model.load_state_dict(weights)",
    ),
    Format(
        name="a class of modules",
        is_it=_is_class,
        cure="a class is no model; build one of it, with its trained weights",
    ),
    Format(
        name="an ONNX model",
        is_it=kind(r"onnx(_ir|script)?\.|onnxruntime\."),
        cure="it holds no modules; read the file with slimrank.from_onnx(path), and give what it returns",
    ),
    Format(
        name="a model of a runtime",
        is_it=kind(r"openvino\.|executorch\.|tensorrt\.|coremltools\."),
        cure="it holds no modules; give the nn.Module that it was made from",
    ),
    Format(
        name="a program of torch.export",
        is_it=lambda thing: isinstance(thing, ExportedProgram),
        cure="it holds operations in place of modules; give the nn.Module that it was exported from",
    ),
    Format(
        name="the graph of a program of torch.export",
        is_it=_is_graph,
        cure="it calls operations in place of modules; give the nn.Module that was exported, in float",
        can_export=True,
    ),
    Format(
        name="a recorded architecture",
        is_it=kind(r"slimrank\.deploy\._recorded_model\."),
        place="module",
        cure="it calls operations in place of modules; build the original, and load by "
        "slimrank.load(directory, model=)",
        can_export=True,
    ),
    Format(
        name="TorchScript",
        is_it=lambda thing: isinstance(thing, torch.jit.ScriptModule | torch.jit.ScriptFunction),
        place="module",
        cure="its modules are no Python, and cannot be exchanged; give the eager model: build it from its "
        "class and load model.state_dict()",
    ),
    Format(
        name="a pipeline",
        is_it=kind(
            r"transformers\.pipelines\.base\.Pipeline$|diffusers\.pipelines\.pipeline_utils\.DiffusionPipeline$"
        ),
        cure="a pipeline is more than a model; give the model in it, such as pipeline.model",
    ),
    Format(
        name="YOLO of ultralytics",
        is_it=lambda thing: is_kind(thing, r"ultralytics\.engine\.model\.Model$"),
        unwrap=_attribute("model"),
        note="the network in the YOLO object was taken (its .model): put what comes out back with "
        "yolo.model = result.model; ultralytics builds a network anew from its description before it trains",
    ),
    Format(
        name="a detector of torchvision",
        is_it=kind(
            r"torchvision\.models\.detection\.(generalized_rcnn\.GeneralizedRCNN|retinanet\.RetinaNet|fcos\.FCOS"
            r"|ssd\.SSD)$"
        ),
        cure="it returns a list of boxes that passed a threshold, as many as there are, and such outputs "
        "cannot be compared; compress its backbone, with images as the model's transform makes them: "
        "images = [model.transform([x])[0].tensors for x in pictures], "
        "model.backbone = slimrank.compress(model.backbone, images, macs=0.5).model",
        can_export=True,
    ),
    Format(
        name="a network compiled by torch.compile",
        is_it=kind(r"torch\._dynamo\.eval_frame\.OptimizedModule$"),
        place="module",
        unwrap=_attribute("_orig_mod"),
        note="torch.compile was taken off, which hides layers; compile the result",
    ),
    Format(
        name="DataParallel",
        is_it=lambda thing: isinstance(thing, nn.DataParallel | nn.parallel.DistributedDataParallel),
        place="module",
        unwrap=_attribute("module"),
        note="the module inside was taken; wrap the result again to train it on several devices",
    ),
    Format(
        name="a module sharded by fully_shard",
        is_it=kind(r"torch\.distributed\.fsdp\.(.*\.)?FSDPModule$"),
        place="module",
        plain_class=_class_before_sharding,
        note="weights that fully_shard spread over processes were taken together, in each of them; shard the "
        "result again to train it",
    ),
    Format(
        name="FullyShardedDataParallel",
        is_it=kind(r"torch\.distributed\.fsdp\..*FullyShardedDataParallel$"),
        place="module",
        cure="its weights are spread over processes; take them together in every process, "
        "weights = torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True)), and load them into a model that was built anew",
    ),
    Format(
        name="a model of bitsandbytes",
        is_it=kind(r"bitsandbytes\.nn\."),
        place="module",
        cure=_FLOAT_FIRST,
    ),
    Format(
        name="a quantised layer",
        is_it=_is_quantised,
        place="module",
        cure=_FLOAT_FIRST,
    ),
    Format(
        name="a layer quantised by another library",
        is_it=kind(
            r"(auto_gptq|gptqmodel|awq|autoawq|aqlm|eetq|hqq|quanto|optimum\.quanto|compressed_tensors"
            r"|transformers\.integrations\.(bitnet|finegrained_fp8|fbgemm_fp8|higgs|spqr|vptq))\."
        ),
        place="module",
        cure=_FLOAT_FIRST,
        can_export=True,
    ),
    Format(
        name="a quantised weight",
        is_it=kind(r"(torchao|bitsandbytes|hqq|quanto|optimum\.quanto)\."),
        place="parameter",
        cure=_FLOAT_FIRST,
        can_export=True,
    ),
    Format(
        name="a module with a hook of accelerate",
        is_it=is_hooked,
        place="module",
        change=without_hook,
        note="hooks of accelerate, which move weights and values between devices, were taken off in a copy; "
        "offloaded weights were read into it",
    ),
    Format(
        name="a model of peft",
        is_it=kind(r"peft\.(peft_model\.Peft|mixed_model\.Peft)"),
        place="module",
        change=_merged,
        changes_weights=True,
        note=_MERGED,
    ),
    Format(
        name="a layer with an adapter of peft",
        is_it=kind(r"peft\.tuners\.tuners_utils\.BaseTunerLayer$"),
        place="module",
        change=_merged_layer,
        changes_weights=True,
        note=_MERGED,
    ),
    Format(
        name="a layer that is trained for int8",
        is_it=kind(
            r"torch\.(ao\.nn|nn)\.(intrinsic\.)?qat\.|(torch|torchao)\.(ao\.)?quantization\.(pt2e\.)?"
            r"(fake_quantize|observer)\.|torchao\.quantization\.qat\.|brevitas\.nn\.|pytorch_quantization\.nn\."
            r"|modelopt\.torch\.quantization\."
        ),
        place="module",
        cure="what it rounds on the way would be lost when layers are split; compress the float model first, "
        "then train the result for int8 (docs/howto/qat.md)",
        can_export=True,
    ),
)
