# SPDX-License-Identifier: Apache-2.0
"""Models of transformers made ready for exporters: tensors alone come out, under the library's names."""

import copy
from types import ModuleType

import pytest
import torch
import transformers
from torch import nn

import seams
from slimrank.deploy import Prepared, prepare
from slimrank.forward import Batch, as_batch, plain_attention

pytestmark = pytest.mark.filterwarnings("ignore")
_TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def checked(model: nn.Module, batch: Batch, n_tensors: int) -> Prepared:
    """Prepared, and compared with what the model returns under the same names."""
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model, batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted = model(*batch.args, **batch.kwargs)
        model = named(prepared, batch)
        inputs = model.inputs_of(batch)
        found = model(*inputs.args, **inputs.kwargs)
    assert len(found) == len(prepared.outputs) == n_tensors
    for path, tensor in zip(prepared.outputs, found.values(), strict=True):
        key, _, index = path.partition(".")
        expected = wanted[key][int(index)] if index else wanted[key]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
    return prepared


def named(prepared: Prepared, batch: Batch) -> seams.NamedModel:
    return seams.named_model(prepared.model, batch, prepared.outputs)


def exported(prepared: Prepared, batch: Batch) -> torch.export.ExportedProgram:
    with plain_attention():
        return torch.export.export(named(prepared, batch), batch.args, dict(batch.kwargs))


def ids(nets: ModuleType) -> torch.Tensor:
    return nets.tokens(length=8, size=3, n=1)[0]


def test_bert(nets: ModuleType) -> None:
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=5, **_TINY)
    model = nets.settle(transformers.BertForSequenceClassification(config)).eval()
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[0, 5:] = 0
    batch = Batch(args=(), kwargs={"input_ids": ids(nets), "attention_mask": mask})
    prepared = checked(model, batch, 1)
    assert named(prepared, batch).arguments == ("input_ids", "attention_mask")
    assert prepared.outputs == ("logits",)
    assert not any(isinstance(module, nn.Dropout) for module in prepared.model.modules())
    program = exported(prepared, batch)
    assert program.graph_signature.user_inputs == named(prepared, batch).arguments
    assert model.config.use_cache


def test_bert_with_hidden_states(nets: ModuleType) -> None:
    model = nets.settle(transformers.BertModel(transformers.BertConfig(vocab_size=50, **_TINY))).eval()
    batch = Batch(args=(ids(nets),), kwargs={"output_hidden_states": True})
    prepared = checked(model, batch, 5)
    assert named(prepared, batch).arguments == ("input_ids",)
    assert prepared.outputs == (
        *("last_hidden_state", "pooler_output"),
        *("hidden_states.0", "hidden_states.1", "hidden_states.2"),
    )


def test_vit(nets: ModuleType) -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **_TINY)
    model = nets.settle(transformers.ViTForImageClassification(config)).eval()
    batch = Batch(args=(), kwargs={"pixel_values": nets.noise(3, 16, 16, n=1, size=3)[0]})
    prepared = checked(model, batch, 1)
    assert (named(prepared, batch).arguments, prepared.outputs) == (("pixel_values",), ("logits",))
    assert exported(prepared, batch).graph_signature.user_inputs == named(prepared, batch).arguments


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_resnet_loses_all_norms(layer_type: str, nets: ModuleType) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type=layer_type, num_labels=5
    )
    model = nets.settle(transformers.ResNetForImageClassification(config)).eval()
    generator = nets.seeded()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    batch = as_batch(nets.noise(3, 32, 32, n=1, size=3)[0])
    prepared = checked(model, batch, 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())
    assert not prepared.notes
    assert named(prepared, batch).arguments == ("pixel_values",)
    exported(prepared, batch)


def test_caches_do_not_come_out(nets: ModuleType) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=1, n_head=4)
    model = nets.settle(transformers.GPT2LMHeadModel(config)).eval()
    batch = Batch(args=(), kwargs={"input_ids": ids(nets)})
    prepared = checked(model, batch, 1)
    assert prepared.outputs == ("logits",)
    assert not prepared.notes
    exported(prepared, batch)
    # Asked for in the call, they are left out, and this is told.
    prepared = checked(model, Batch(args=(), kwargs={**batch.kwargs, "use_cache": True}), 1)
    assert prepared.notes == ("outputs left out, since they hold no tensors or a cache: 'past_key_values'",)
    assert model.config.use_cache


@pytest.mark.slow
def test_encoder_and_decoder(nets: ModuleType) -> None:
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=6, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    model = nets.settle(transformers.T5ForConditionalGeneration(config)).eval()
    batch = Batch(args=(), kwargs={"input_ids": ids(nets), "decoder_input_ids": ids(nets)[:, :4]})
    prepared = checked(model, batch, 2)
    assert prepared.outputs == ("logits", "encoder_last_hidden_state")
    assert named(prepared, batch).arguments == ("input_ids", "decoder_input_ids")
    exported(prepared, batch)


@pytest.mark.parametrize("kernel", ["grouped_mm", "eager", "batched_mm"])
def test_experts_are_computed_by_operations_of_torch(kernel: str, nets: ModuleType) -> None:
    config = transformers.MixtralConfig(
        vocab_size=50, num_key_value_heads=2, num_local_experts=4, experts_implementation=kernel, **_TINY
    )
    model = nets.settle(transformers.MixtralForCausalLM(config)).eval()
    batch = Batch(args=(), kwargs={"input_ids": ids(nets)})
    prepared = checked(model, batch, 1)
    assert model.config._experts_implementation == kernel
    assert [note.partition(";")[0] for note in prepared.notes] == [
        "experts: 'model.layers.0.mlp.experts', 'model.layers.1.mlp.experts'"
    ]
    names = {str(node.target) for node in exported(prepared, batch).graph.nodes}
    assert not any(name.startswith("transformers.") or "histc" in name for name in names)
