# SPDX-License-Identifier: Apache-2.0
"""What users arrive with: each row of the table is taken and told of, or refused with what to do instead.

Classes of packages that are not installed are stood in for by classes of the same names.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import slimrank as sr

torch_ao_warns = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
pytestmark = torch_ao_warns

Snapshot = Callable[[nn.Module], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(3)]


def of_package(name: str, *bases: type, **members: object) -> type:
    """A class by its full name."""
    module, _, short = name.rpartition(".")
    return type(short, bases or (nn.Module,), {"__module__": module, **members})


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Something that no call takes.

    Attributes:
        make: it.
        words: of the message.
        exports: it can be written to a file all the same.
    """

    make: Callable[[], object]
    words: str
    exports: bool = False


def _scripted() -> object:
    return torch.jit.trace(network(), batches()[0])


def _dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


def _static() -> nn.Module:
    stub, back = torch.ao.quantization.QuantStub, torch.ao.quantization.DeQuantStub
    net = nn.Sequential(stub(), nn.Linear(6, 4), back()).eval()
    net.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(net)
    prepared(batches()[0])
    return torch.ao.quantization.convert(prepared)


def _graph_quantised() -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping  # noqa: PLC0415
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx  # noqa: PLC0415

    prepared = prepare_fx(network(), get_default_qconfig_mapping(), (batches()[0],))
    prepared(batches()[0])
    return convert_fx(prepared)


def _prepared_for_training() -> nn.Module:
    net = network().train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return torch.ao.quantization.prepare_qat(net)


def _observed() -> nn.Module:
    net = network()
    net.qconfig = torch.ao.quantization.default_qconfig
    return torch.ao.quantization.prepare(net)


def _torchao() -> nn.Module:
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: PLC0415

    net = network()
    quantize_(net, Int8WeightOnlyConfig())
    return net


def _with_layer(name: str) -> nn.Module:
    net = network()
    net.first = of_package(name, nn.Linear)(6, 12)
    return net


def _four_bit() -> nn.Module:
    net = network()
    kind = of_package("bitsandbytes.nn.modules.Params4bit", nn.Parameter)
    net.first.weight = kind(torch.zeros(12, 6), requires_grad=False)
    return net


def _detector(name: str) -> nn.Module:
    net = network()
    kind = of_package(f"torchvision.models.detection.{name}")
    # A class of torchvision derives from it.
    detector = of_package("torchvision.models.detection.faster_rcnn.FasterRCNN", kind)()
    detector.backbone = net
    return detector


def _on_meta() -> nn.Module:
    net = network()
    net.first = nn.Linear(6, 12, device="meta")
    return net


def _prompt_tuned() -> nn.Module:
    wrapper = of_package("peft.peft_model.PeftModel")()
    wrapper.base_model = network()
    return wrapper


def _exported_yolo() -> nn.Module:
    yolo = of_package("ultralytics.models.yolo.model.YOLO", of_package("ultralytics.engine.model.Model"))()
    yolo.model = "yolo.onnx"
    return yolo


REFUSED = {
    "onnx file": Refused(make=lambda: "model.onnx", words=r"'model\.onnx' .*slimrank\.from_onnx\(path\)"),
    "onnx path": Refused(make=lambda: Path("m.onnx"), words=r"Path .*slimrank\.from_onnx\(path\)"),
    "pt2 file": Refused(make=lambda: "model.pt2", words=r"'model\.pt2' .*give the nn\.Module"),
    "pt file": Refused(
        make=lambda: "model.pt", words=r"'model\.pt' .*load_state_dict\(torch\.load\(path\)\)"
    ),
    "safetensors": Refused(make=lambda: "a/m.safetensors", words=r"safetensors\.torch\.load_file"),
    "engine": Refused(make=lambda: "model.engine", words=r"a file of a runtime .*give the nn\.Module"),
    "weights": Refused(
        make=lambda: network().state_dict(), words=r"OrderedDict .*load_state_dict\(weights\)"
    ),
    "class": Refused(make=lambda: Net, words=r"the class .*Net .*build one"),
    "onnx model": Refused(
        make=of_package("onnx.onnx_ml_pb2.ModelProto", object), words=r"ModelProto .*from_onnx\(path\)"
    ),
    "openvino": Refused(
        make=of_package("openvino.Model", object), words=r"openvino\.Model .*give the nn\.Module"
    ),
    "pipeline": Refused(
        make=of_package(
            "transformers.pipelines.text_classification.TextClassificationPipeline",
            of_package("transformers.pipelines.base.Pipeline", object),
        ),
        words=r"TextClassificationPipeline .*pipeline\.model",
    ),
    "torchscript": Refused(make=_scripted, words=r"TorchScript.*give the eager model"),
    "torchscript inside": Refused(
        make=lambda: nn.Sequential(nn.Linear(6, 12), torch.jit.trace(nn.Linear(12, 4), torch.ones(1, 12))),
        words=r"'1' is a torch\.jit.*TorchScript.*give the eager model",
    ),
    "torch.export": Refused(
        make=lambda: torch.export.export(network(), (batches()[0],)),
        words=r"ExportedProgram .*give the nn\.Module that it was exported from",
    ),
    "graph of torch.export": Refused(
        make=lambda: torch.export.export(network(), (batches()[0],)).module(),
        words=r"GraphModule .*give the nn\.Module that was exported",
        exports=True,
    ),
    "unflattened": Refused(
        make=lambda: torch.export.unflatten(torch.export.export(network(), (batches()[0],))),
        words=r"UnflattenedModule .*give the nn\.Module that was exported",
        exports=True,
    ),
    "dynamic int8": Refused(
        make=_dynamic, words=r"'first' is a .*dynamic.*Linear .*compress the float model first"
    ),
    "static int8": Refused(make=_static, words=r"quantized.*compress the float model first, then quantise"),
    "fx int8": Refused(
        make=_graph_quantised, words=r"quantized.*compress the float model first, then quantise"
    ),
    "qat": Refused(make=_prepared_for_training, words=r"qat.*train the result for int8", exports=True),
    "observed": Refused(make=_observed, words=r"observer.*train the result for int8", exports=True),
    "torchao": Refused(
        make=_torchao, words=r"'first\.weight' is a torchao.*compress the float", exports=True
    ),
    "bitsandbytes 8 bit": Refused(
        make=lambda: _with_layer("bitsandbytes.nn.modules.Linear8bitLt"),
        words=r"'first' is a bitsandbytes\.nn\.modules\.Linear8bitLt .*compress the float",
    ),
    "bitsandbytes 4 bit": Refused(make=_four_bit, words=r"Params4bit .*compress the float", exports=True),
    "gptq": Refused(
        make=lambda: _with_layer("gptqmodel.nn_modules.qlinear.torch.TorchQuantLinear"),
        words=r"TorchQuantLinear .*compress the float",
        exports=True,
    ),
    "faster r-cnn": Refused(
        make=lambda: _detector("generalized_rcnn.GeneralizedRCNN"),
        words=r"FasterRCNN .*compress its backbone",
        exports=True,
    ),
    "retinanet": Refused(
        make=lambda: _detector("retinanet.RetinaNet"), words=r"compress its backbone", exports=True
    ),
    "meta device": Refused(
        make=_on_meta, words=r"'first\.weight', 'first\.bias' on the meta device.*device_map="
    ),
    "prompt tuning": Refused(make=_prompt_tuned, words=r"PeftModel, whose adapters .*cannot be merged"),
    "exported yolo": Refused(make=_exported_yolo, words=r"'yolo\.onnx' .*slimrank\.from_onnx"),
}


@pytest.fixture(scope="module")
def plan() -> sr.Plan:
    return sr.study(network(), batches(), effort="fast", progress=False).plan(macs=0.6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_tells_its_class_and_the_cure(name: str, plan: sr.Plan, tmp_path: Path) -> None:
    row = REFUSED[name]
    given = row.make()
    calls: list[Callable[[], object]] = [
        lambda: sr.study(given, batches(), progress=False),
        lambda: sr.compress(given, batches(), macs=0.5, progress=False),
        lambda: sr.apply(given, plan, batches(), progress=False),
    ]
    if not row.exports:
        calls.append(lambda: sr.export(given, tmp_path / "m.pt2", batches(), format="torch"))
    for call in calls:
        with pytest.raises(sr.ModelError, match=row.words):
            call()


class _Yolo(of_package("ultralytics.engine.model.Model")):
    """Its ``train`` starts a training, as that of ultralytics does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> nn.Module:
        raise AssertionError("a training was started")


class _Peft(of_package("peft.peft_model.PeftModel")):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.base_model(x)

    def merge_and_unload(self) -> nn.Module:
        model = self.base_model
        for name, layer in list(model.named_children()):
            if isinstance(layer, _Lora):
                layer.merge()
                setattr(model, name, layer.get_base_layer())
        return model


class _Lora(
    of_package("peft.tuners.lora.layer.Linear", of_package("peft.tuners.tuners_utils.BaseTunerLayer"))
):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.base_layer = layer
        self.a = nn.Parameter(torch.randn(2, layer.in_features, generator=generator))
        self.b = nn.Parameter(torch.randn(layer.out_features, 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.a.T @ self.b.T

    def merge(self) -> None:
        self.base_layer.weight.data += self.b @ self.a

    def get_base_layer(self) -> nn.Module:
        return self.base_layer


def _with_adapters() -> Net:
    net = network()
    net.first, net.last = _Lora(net.first), _Lora(net.last)
    return net


def _merged_by_hand() -> Net:
    net, adapted = network(), _with_adapters()
    for name in ("first", "last"):
        lora = getattr(adapted, name)
        getattr(net, name).weight.data += lora.b @ lora.a
    return net


class _Hook:
    """As accelerate's: fetches weights before a forward, and drops them after it."""

    def __init__(self, weights_map: dict[str, Tensor] | None = None) -> None:
        self.weights_map = weights_map

    def __deepcopy__(self, memo: object) -> "_Hook":
        raise AssertionError("the store of weights was copied")


def _hooked(net: nn.Module, names: tuple[str, ...], *, offloaded: bool) -> nn.Module:
    for name in names:
        module = net.get_submodule(name)
        old_forward = module.forward
        weights = {key: value.detach() for key, value in module.named_parameters()} if offloaded else None
        module._hf_hook, module._old_forward = _Hook(weights), old_forward
        if offloaded:
            for key in weights:
                setattr(module, key, nn.Parameter(torch.empty_like(weights[key], device="meta")))

        def new_forward(module: nn.Module, *args: object) -> object:
            return module._old_forward(*args)

        module.forward = functools.update_wrapper(functools.partial(new_forward, module), old_forward)
    net.hf_device_map = {"": "cpu"}
    net.to = functools.update_wrapper(lambda *_args: None, net.to)
    return net


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    net = network()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(net.first, mesh=mesh)
    return fully_shard(net, mesh=mesh)


class _Outer(nn.Module):
    """A model with a wrapper inside, under two names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.also = inner, [inner]

    def forward(self, x: Tensor) -> Tensor:
        return self.also[0](x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Something that every call takes.

    Attributes:
        make: it.
        plain: the module that it amounts to.
        words: of the note; None for no note.
    """

    make: Callable[[], nn.Module]
    plain: Callable[[], nn.Module] = network
    words: str | None = None


TAKEN = {
    "timm": Taken(make=lambda: of_package("timm.models.resnet.ResNet", Net)().eval(), plain=network),
    "transformers": Taken(make=lambda: of_package("transformers.models.x.PreTrainedModel", Net)().eval()),
    "smp": Taken(
        make=lambda: of_package("segmentation_models_pytorch.decoders.unet.model.Unet", Net)().eval()
    ),
    "monai": Taken(make=lambda: of_package("monai.networks.nets.unet.UNet", Net)().eval()),
    "ultralytics": Taken(make=lambda: _Yolo(network()), words=r"yolo\.model = result\.model"),
    "torch.compile": Taken(
        make=lambda: torch.compile(network(), backend="eager"), words="compile the result"
    ),
    "compiled inside": Taken(
        make=lambda: _Outer(torch.compile(network(), backend="eager")).eval(),
        plain=lambda: _Outer(network()).eval(),
        words="compile the result",
    ),
    "data parallel": Taken(make=lambda: nn.DataParallel(network()), words="wrap the result again"),
    "parallel inside": Taken(
        make=lambda: _Outer(nn.DataParallel(network())).eval(),
        plain=lambda: _Outer(network()).eval(),
        words="wrap the result again",
    ),
    "compiled parallel": Taken(
        make=lambda: torch.compile(nn.DataParallel(network()), backend="eager"), words="wrap the result again"
    ),
    "distributed": Taken(
        make=lambda: nn.parallel.DistributedDataParallel(network()), words="wrap the result again"
    ),
    "fully_shard": Taken(make=_sharded, words="shard the result again"),
    "peft": Taken(
        make=lambda: _Peft(_with_adapters()).eval(), plain=_merged_by_hand, words="merged .*of a copy"
    ),
    "lora layers": Taken(
        make=lambda: _with_adapters().eval(), plain=_merged_by_hand, words="merged .*of a copy"
    ),
    "accelerate": Taken(
        make=lambda: _hooked(network(), ("", "first"), offloaded=False), words="hooks of accelerate"
    ),
    "offloaded": Taken(
        make=lambda: _hooked(network(), ("first", "last"), offloaded=True),
        words="offloaded weights were read",
    ),
}


@functools.cache
def expected_output(plain: Callable[[], nn.Module]) -> Tensor:
    """What the plain module gives once it is compressed."""
    result = sr.compress(plain(), batches(), macs=0.6, compete=False, effort="fast", progress=False)
    return result.model(batches()[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.usefixtures("one_process")
def test_what_is_taken_gives_what_the_plain_model_gives(name: str, tmp_path: Path) -> None:
    row = TAKEN[name]
    torch.manual_seed(0)
    given = row.make()
    modules = [(name, type(module), set(vars(module))) for name, module in given.named_modules()]
    weights = [(name, weight, weight._version) for name, weight in given.named_parameters()]
    study = sr.study(given, batches(), effort="fast", progress=False)
    result = study.apply(study.plan(macs=0.6))
    assert torch.equal(result.model(batches()[0]), expected_output(row.plain))
    # Nothing of the caller's has changed.
    assert [(name, type(module), set(vars(module))) for name, module in given.named_modules()] == modules
    assert all(
        weight is before and weight._version == version
        for (_, weight), (_, before, version) in zip(given.named_parameters(), weights, strict=True)
    )

    again = sr.apply(given, result.plan, batches(), progress=False)
    exported = sr.export(given, tmp_path / "m.pt2", batches(), format="torch")
    for notes in (study.notes, result.notes, again.notes, exported.notes):
        texts = [note.text for note in notes if note.where == "model"]
        assert len(texts) == (row.words is not None) + (name == "compiled parallel")
        if row.words is not None:
            assert any(re.search(row.words, text) for text in texts)
    study.save(tmp_path / "study")
    assert sr.Study.load(tmp_path / "study", model=given).fingerprint == study.fingerprint
    result.save(tmp_path / "saved")
    loaded = sr.load(tmp_path / "saved", model=given)
    assert torch.equal(loaded(batches()[0]), result.model(batches()[0]))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_the_older_sharding_is_refused(use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415

    given = FullyShardedDataParallel(
        network(), device_id=torch.device("cpu"), use_orig_params=use_orig_params
    )
    with pytest.raises(sr.ModelError, match=r"FullyShardedDataParallel.*full_state_dict=True"):
        sr.study(given, batches(), progress=False)


def test_a_store_without_a_weight_is_refused() -> None:
    given = _hooked(network(), ("first",), offloaded=True)
    del given.first._hf_hook.weights_map["weight"]
    with pytest.raises(sr.ModelError, match=r"'first\.weight' on the meta device"):
        sr.study(given, batches(), progress=False)


def test_a_store_of_another_shape_is_refused() -> None:
    given = _hooked(network(), ("first",), offloaded=True)
    given.first._hf_hook.weights_map["weight"] = torch.zeros(2, 2)
    with pytest.raises(sr.ModelError, match=r"stored as \[2, 2\], and the module has \[12, 6\]"):
        sr.study(given, batches(), progress=False)


def test_an_adapter_that_cannot_be_merged_is_refused() -> None:
    def refuse(self: nn.Module) -> nn.Module:
        raise ValueError("Cannot merge LoRA layers when the model is gptq quantized")

    kind = of_package("peft.peft_model.PeftModelForCausalLM", _Peft, merge_and_unload=refuse)
    with pytest.raises(
        sr.ModelError, match=r"PeftModelForCausalLM, .*gptq quantized.*merge_and_unload\(\) your"
    ):
        sr.study(kind(network()), batches(), progress=False)


class _MetaTensor(Tensor):
    """As MONAI's: runs code of its own in every operation, and knows where it comes from."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        if func is torch.nn.functional.linear:
            raise AssertionError("a tensor of MONAI reached the model")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    "dress",
    [
        lambda x: x.as_subclass(_MetaTensor),
        lambda x: (x.as_subclass(_MetaTensor),),
        lambda x: {"x": x.as_subclass(_MetaTensor)},
    ],
    ids=["bare", "tuple", "dict"],
)
def test_tensors_of_other_libraries_become_plain(dress: Callable[[Tensor], object]) -> None:
    dressed = [dress(x) for x in batches()]
    result = sr.compress(network(), dressed, macs=0.6, compete=False, effort="fast", progress=False)
    assert torch.equal(result.model(batches()[0]), expected_output(network))
