# SPDX-License-Identifier: Apache-2.0
"""Models of the transformers library, built small from a configuration: no download."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import onnx
import pytest
import torch
import transformers
from torch import nn

import slimrank as sr
from slimrank.records import Method

FACTORS: tuple[Method, ...] = ("weight_svd", "spatial_svd")
pytestmark = pytest.mark.filterwarnings("ignore")


def bert(nets: ModuleType) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=5,
    )
    return nets.settle(transformers.BertForSequenceClassification(config)).eval()


def padded(nets: ModuleType, padding: int) -> list[dict[str, torch.Tensor]]:
    """Batches in which the last three tokens of every second sample are padding, of one token or another."""
    batches = []
    for ids in nets.tokens(length=8, size=6):
        mask = torch.ones_like(ids)
        mask[::2, 5:] = 0
        batches.append({"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask})
    return batches


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "least"), [(FACTORS, 0.57), (sr.METHODS, 0.55)])
def test_bert_with_attention_mask(methods: Sequence[Method], least: float, nets: ModuleType) -> None:
    model = bert(nets)
    study = sr.study(model, padded(nets, 0), methods=methods, progress=False)
    names = {spec.name for spec in study.layers if spec.methods}
    assert {
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.0.output.dense",
    } <= names
    plan = study.plan(macs=0.6)
    result = study.apply(plan)
    assert result.after == plan.after
    # Whole heads leave larger gaps than ranks.
    assert least < result.keep_ratio("macs") <= 0.6
    assert "logits" in "\n".join(str(note) for note in study.notes)
    assert study.unit == "nats per sample"


@pytest.mark.slow
def test_padding_tokens_leave_no_trace(nets: ModuleType) -> None:
    one = sr.study(bert(nets), padded(nets, 0), progress=False)
    other = sr.study(bert(nets), padded(nets, 37), progress=False)
    assert len(one.curves) == len(other.curves) > 0
    for before, after in zip(one.curves, other.curves, strict=True):
        assert before.layer == after.layer
        torch.testing.assert_close(
            torch.from_numpy(before.error), torch.from_numpy(after.error), rtol=1e-3, atol=1e-9
        )


@pytest.mark.slow
def test_padding_matters_where_no_mask_is_given(nets: ModuleType) -> None:
    bare = [[{"input_ids": b["input_ids"]} for b in padded(nets, p)] for p in (0, 37)]
    one, other = (sr.study(bert(nets), batches, progress=False) for batches in bare)
    assert any(
        abs(before.error[0] - after.error[0]) > 0.01 * before.error[0]
        for before, after in zip(one.curves, other.curves, strict=True)
    )


@pytest.mark.slow
def test_t5_leaves_wo_alone(nets: ModuleType) -> None:
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=6, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    model = nets.settle(transformers.T5ForConditionalGeneration(config)).eval()
    batches = [{"input_ids": ids, "decoder_input_ids": ids[:, :4]} for ids in nets.tokens(size=4, n=2)]
    study = sr.study(model, batches, progress=False)
    specs = {spec.name: spec for spec in study.layers}
    assert "its parent uses more than its output" in (
        specs["encoder.block.0.layer.1.DenseReluDense.wo"].reason or ""
    )
    assert specs["encoder.block.0.layer.1.DenseReluDense.wi"].methods
    assert specs["decoder.block.0.layer.0.SelfAttention.q"].methods
    result = study.apply(study.plan(macs=0.85))
    assert result.after == result.plan.after
    assert result.keep_ratio("macs") <= 0.85
    with torch.no_grad():
        result.model(**batches[0])


def test_gpt2_conv1d_has_a_reason(nets: ModuleType) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=1, n_head=4)
    model = nets.settle(transformers.GPT2LMHeadModel(config)).eval()
    batches = [{"input_ids": ids} for ids in nets.tokens(size=4, n=2)]
    with pytest.raises(sr.ModelError, match=r"no compressible layer .*no method for Conv1D"):
        sr.study(model, batches, methods=FACTORS, progress=False)
    # Its channels may go all the same.
    result = sr.compress(model, batches, macs=0.9, compete=False, progress=False)
    assert result.after == result.plan.after
    assert result.plan.groups
    with torch.no_grad():
        result.model(**batches[0])


@pytest.mark.slow
def test_exports_keep_the_names_of_keywords_and_outputs(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(bert(nets), padded(nets, 0), methods=FACTORS, progress=False)
    exported = study.apply(study.plan(macs=0.7)).export(tmp_path / "bert.onnx")
    assert exported.agreement == 1.0
    assert exported.before_ms is not None
    graph = onnx.load(exported.path).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["logits"]


@pytest.mark.slow
def test_exports_have_no_cache(nets: ModuleType, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = nets.settle(transformers.LlamaForCausalLM(config)).eval()
    exported = sr.export(model, tmp_path / "llama.pt2", padded(nets, 0), format="torch")
    assert exported.max_error < 1e-5
    batch = padded(nets, 0)[0]
    # In a process without transformers, too: nothing in the file is of its classes.
    code = (
        f"import sys, torch; torch.export.load({str(exported.path)!r}); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    found = torch.export.load(exported.path).module()(**batch)
    torch.testing.assert_close(found["logits"], model(**batch).logits, rtol=1e-4, atol=1e-5)
    assert list(found) == ["logits"]


def test_the_neurons_of_stacked_experts_form_channel_groups(nets: ModuleType) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    model = nets.settle(transformers.Qwen3MoeForCausalLM(config)).eval()
    tokens = [{"input_ids": ids} for ids in nets.tokens(length=8, size=6)]
    study = sr.study(model, tokens, effort="fast", progress=False)
    group = study.structure.channels.groups["model.layers.0.mlp.experts"]
    assert (group.reason, group.units) == (None, 6)
    result = study.apply(study.plan(macs=0.8, methods=("channel_pruning",)))
    assert result.keep_ratio() <= 0.8
    experts = result.model.get_submodule("model.layers.0.mlp.experts")
    neurons = experts.down_proj.shape[2]
    assert neurons < 24
    assert experts.gate_up_proj.shape == (4, 2 * neurons, 32)
