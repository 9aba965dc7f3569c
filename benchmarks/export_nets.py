# SPDX-License-Identifier: Apache-2.0
"""The networks of ``make bench-export``: those of ``zoo_coverage.py``, and more of transformers.

Models of transformers are what people export most, and each of their families brings operations of its own.
All come from small configurations, weights random.
"""

from collections.abc import Iterator, Mapping

from benchmarks import zoo_coverage
from benchmarks.zoo import Net, from_transformers, noise
from benchmarks.zoo_coverage import _IDS, _PATCHES, _PIXELS, _ROTARY, _SEQ2SEQ, _TEXT

_WORDS = "ForSequenceClassification"
_NEXT = "ForCausalLM"
# Within the small vocabulary; the defaults are not.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _more() -> Iterator[Net]:
    for name, kind, options, inputs in (
        ("electra", f"Electra:{_WORDS}", {**_TEXT, "embedding_size": 32}, _IDS),
        ("albert", f"Albert:{_WORDS}", {**_TEXT, "embedding_size": 32}, _IDS),
        ("mpnet", f"MPNet:{_WORDS}", _TEXT, _IDS),
        ("deberta_v2", f"DebertaV2:{_WORDS}", {**_TEXT, "relative_attention": True,
                                               "pos_att_type": ["p2c", "c2p"]}, _IDS),
        ("modernbert", f"ModernBert:{_WORDS}", {**_TEXT, **_TOKENS, "cls_token_id": 1, "sep_token_id": 2},
         _IDS),
        ("opt", f"OPT:{_NEXT}", {
            "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "ffn_dim": 160, "max_position_embeddings": 64, "word_embed_proj_dim": 64, "use_cache": False,
            **_TOKENS,
        }, _IDS),
        ("gpt_neox", f"GPTNeoX:{_NEXT}", {**_TEXT, "use_cache": False, **_TOKENS}, _IDS),
        ("bloom", f"Bloom:{_NEXT}", {
            "vocab_size": 500, "hidden_size": 64, "n_layer": 3, "n_head": 4, "use_cache": False, **_TOKENS,
        }, _IDS),
        ("falcon", f"Falcon:{_NEXT}", {
            "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "use_cache": False, **_TOKENS,
        }, _IDS),
        ("phi3", f"Phi3:{_NEXT}", {**_ROTARY, **_TOKENS}, _IDS),
        ("qwen3", f"Qwen3:{_NEXT}", {**_ROTARY, "head_dim": 16}, _IDS),
        ("gemma2", f"Gemma2:{_NEXT}", {**_ROTARY, "head_dim": 16}, _IDS),
        ("mixtral", f"Mixtral:{_NEXT}", {**_ROTARY, "num_local_experts": 4}, _IDS),
        ("qwen2_moe", f"Qwen2Moe:{_NEXT}", {
            **_ROTARY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 96,
        }, _IDS),
        ("mamba", f"Mamba:{_NEXT}", {
            "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "use_cache": False,
            **_TOKENS,
        }, _IDS),
        ("t5_encoder", "T5:EncoderModel", {
            "vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4,
        }, _IDS),
        ("whisper_encoder", "Whisper:ForAudioClassification", {**_SEQ2SEQ, "max_source_positions": 40},
         noise("input_features", 80, 80)),
        ("clip_vision", "CLIPVision:ModelWithProjection", {**_PATCHES, "projection_dim": 32}, _PIXELS),
        ("siglip_vision", "SiglipVision:Model", _PATCHES, _PIXELS),
        ("dinov2", "Dinov2:ForImageClassification", {**_PATCHES, "mlp_ratio": 2}, _PIXELS),
        ("yolos", "Yolos:ForObjectDetection", {**_PATCHES, "image_size": [64, 64],
                                               "num_detection_tokens": 10}, _PIXELS),
        ("hubert", "Hubert:ForCTC", {
            **{key: _TEXT[key] for key in _TEXT if key not in ("vocab_size", "max_position_embeddings")},
            "vocab_size": 32, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        }, noise("input_values", 4000)),
    ):  # fmt: skip
        yield Net(
            name=name,
            source="transformers",
            build=lambda kind=kind, options=options: from_transformers(kind, **options),
            inputs=inputs,
        )


# The small ones first: a table that is only partly filled says most.
_ORDER = ("transformers", "here", "timm", "torchvision")
_ALL = {**zoo_coverage.NETS, **{f"{net.source}/{net.name}": net for net in _more()}}
NETS: Mapping[str, Net] = dict(sorted(_ALL.items(), key=lambda item: _ORDER.index(item[1].source)))
