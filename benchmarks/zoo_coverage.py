# SPDX-License-Identifier: Apache-2.0
"""Seventy-odd architectures for the table of coverage, weights random: of three libraries, and own.

Every one is as its library builds it; those of transformers, and two of timm whose smallest are large, come
from small configurations. Pictures are as small as the architecture takes them: coverage is about what the
graph holds, and all of it must be done within a few hours.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from benchmarks import zoo
from benchmarks.zoo import (
    Net,
    from_timm,
    from_torchvision,
    from_transformers,
    noise,
    stand_in_for_torchvision,
    tokens,
)
from tests.integration import zoo_nets

# Name -> height and width of the picture.
_TORCHVISION: Mapping[str, int] = {
    "alexnet": 64,
    "vgg16_bn": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "densenet121": 64,
    "googlenet": 64,
    "squeezenet1_1": 64,
    "shufflenet_v2_x1_0": 64,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "convnext_tiny": 64,
    "swin_t": 64,
}
# Random branches add up: its outputs would be one-hot to the last bit, and have no gradient.
_LOUD: Mapping[str, str] = {"wide_resnet50_2": "fc.weight"}
_SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50",
                 "lraspp_mobilenet_v3_large")  # fmt: skip
_DETECTORS: Mapping[str, int] = {
    "ssdlite320_mobilenet_v3_large": 320,
    "fasterrcnn_mobilenet_v3_large_fpn": 96,
}
_TIMM: Mapping[str, tuple[int, Mapping[str, object]]] = {
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64}),
    "convnextv2_atto": (64, {}),
    "mobilevit_xxs": (128, {}),
    "levit_128s": (224, {}),
    "efficientformer_l1": (224, {}),
    "hrnet_w18_small": (64, {}),
    "ghostnet_050": (64, {}),
    "repvgg_a0": (64, {}),
    "mixer_s32_224": (128, {"img_size": 128}),
    "beit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 192, "depth": 6, "num_heads": 3}),
    "cait_xxs24_224": (64, {"img_size": 64}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "pvt_v2_b0": (64, {}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "num_classes": 10}),
    "resnext26ts": (64, {}),
    "poolformer_s12": (64, {}),
}
_TEXT = {
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 64,
}
_ROTARY = {**_TEXT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
_SEQ2SEQ = {
    "vocab_size": 500,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
_PATCHES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "image_size": 64,
    "patch_size": 16,
}
_IDS = tokens("input_ids", length=16, vocab=500)
_BOTH_IDS = tokens("input_ids", "decoder_input_ids", length=16, vocab=500)
_PIXELS = noise("pixel_values", 3, 64, 64)


def _transformers() -> Iterator[Net]:
    for name, kind, options, inputs in (
        ("bert", "Bert:ForSequenceClassification", _TEXT, _IDS),
        ("roberta", "Roberta:ForSequenceClassification", _TEXT, _IDS),
        (
            "distilbert",
            "DistilBert:ForSequenceClassification",
            {"vocab_size": 500, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 160},
            _IDS,
        ),
        (
            "gpt2",
            "GPT2:LMHeadModel",
            {"vocab_size": 500, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0,
             "use_cache": False},
            _IDS,
        ),
        ("llama", "Llama:ForCausalLM", _ROTARY, _IDS),
        ("qwen2", "Qwen2:ForCausalLM", _ROTARY, _IDS),
        ("mistral", "Mistral:ForCausalLM", _ROTARY, _IDS),
        ("gemma", "Gemma:ForCausalLM", {**_ROTARY, "head_dim": 16}, _IDS),
        (
            "t5",
            "T5:ForConditionalGeneration",
            {"vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4,
             "use_cache": False},
            _BOTH_IDS,
        ),
        ("bart", "Bart:ForConditionalGeneration", {**_SEQ2SEQ, "max_position_embeddings": 64}, _BOTH_IDS),
        (
            "whisper",
            "Whisper:ForConditionalGeneration",
            {**_SEQ2SEQ, "max_source_positions": 40},
            lambda n: {
                **noise("input_features", 80, 80)(n),
                **tokens("decoder_input_ids", length=8, vocab=500)(n),
            },
        ),
        ("vit", "ViT:ForImageClassification", _PATCHES, _PIXELS),
        ("deit", "DeiT:ForImageClassification", _PATCHES, _PIXELS),
        (
            "swin",
            "Swin:ForImageClassification",
            {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "image_size": 64,
             "window_size": 4},
            _PIXELS,
        ),
        (
            "segformer",
            "Segformer:ForSemanticSegmentation",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 64},
            _PIXELS,
        ),
        (
            "detr",
            "Detr:ForObjectDetection",
            {**{key: _SEQ2SEQ[key] for key in _SEQ2SEQ if key.startswith(("encoder", "decoder_a", "decoder_f",
                "decoder_l", "d_"))}, "num_queries": 10, "use_timm_backbone": False,
             "backbone_config": {"model_type": "resnet", "embedding_size": 16,
                                 "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1],
                                 "out_features": ["stage4"]}},
            _PIXELS,
        ),
        (
            "convnext",
            "ConvNext:ForImageClassification",
            {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
            _PIXELS,
        ),
        (
            "resnet",
            "ResNet:ForImageClassification",
            {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]},
            _PIXELS,
        ),
        (
            "mobilenet_v2",
            "MobileNetV2:ForImageClassification",
            {"depth_multiplier": 0.5, "image_size": 64},
            _PIXELS,
        ),
        (
            "wav2vec2",
            "Wav2Vec2:ForCTC",
            {**{key: _TEXT[key] for key in _TEXT if key not in ("vocab_size", "max_position_embeddings")},
             "vocab_size": 32, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16,
             "num_conv_pos_embedding_groups": 4},
            noise("input_values", 4000),
        ),
        (
            "clip",
            "CLIP:Model",
            {
                "text_config": {**_TEXT, "eos_token_id": 499, "projection_dim": 32},
                "vision_config": {**_PATCHES, "projection_dim": 32},
                "projection_dim": 32,
            },
            lambda n: {**_IDS(n), **_PIXELS(n)},
        ),
    ):  # fmt: skip
        yield Net(
            name=name,
            source="transformers",
            build=lambda kind=kind, options=options: from_transformers(kind, **options),
            inputs=inputs,
        )


def _torchvision(name: str, inputs: Callable[[int], Mapping], **options: object) -> Net:
    return Net(
        name=name,
        source="torchvision",
        build=lambda: from_torchvision(name, **options),
        inputs=inputs,
    )


def _maxvit() -> nn.Module:
    """The maxvit_t of torchvision for small pictures: windows of 2 x 2, which no builder offers."""
    stand_in_for_torchvision()
    from torchvision.models.maxvit import MaxVit  # noqa: PLC0415

    return MaxVit(
        input_size=(64, 64),
        stem_channels=64,
        partition_size=2,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )


def _two_images(size: int) -> Callable[[int], Mapping]:
    return lambda n: {
        "image1": noise("x", 3, size, size)(n)["x"],
        "image2": noise("x", 3, size, 2 * size)(n)["x"][..., :size],
        # Of twelve refinements by one and the same layers.
        "num_flow_updates": 2,
    }


def _retinanet_backbone() -> nn.Module:
    """The backbone of a RetinaNet of torchvision on a smaller ResNet, which no builder offers."""
    stand_in_for_torchvision()
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: PLC0415
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7  # noqa: PLC0415

    return resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )


def backbone(detector: str) -> nn.Module:
    """The backbone of a detector of torchvision: boxes cannot be compared, so this is what users compress.

    Args:
        detector: name of its builder.

    Returns:
        The backbone: pictures (N, 3, H, W) to maps by name.
    """
    return from_torchvision(detector, weights_backbone=None).get_submodule("backbone")


def build(net: Net) -> nn.Module:
    """A network of the zoo, settled, and no parameter a constant.

    Layer scales of 1e-6 and norms whose scales are zero would hide whatever a branch holds.

    Args:
        net: one of ``NETS``.

    Returns:
        The network, in eval mode.
    """
    model = zoo.build(net)
    with torch.no_grad():
        if net.name in _LOUD:
            model.get_parameter(_LOUD[net.name]).mul_(0.05)
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.numel() > 1 and parameter.std() < 1e-8:
                parameter.normal_(*((0, 0.1) if "bias" in name else (1, 0.2)))
    return model


def _nets() -> Iterator[Net]:
    for name, size in _TORCHVISION.items():
        yield _torchvision(name, noise("x", 3, size, size))
    # Its own initialisation makes activations of random weights explode.
    yield _torchvision("inception_v3", noise("x", 3, 96, 96), init_weights=False)
    yield _torchvision("vit_b_16", noise("x", 3, 64, 64), image_size=64)
    yield Net(name="maxvit_t", source="torchvision", build=_maxvit, inputs=noise("x", 3, 64, 64))
    for name in _SEGMENTATION:
        yield _torchvision(name, noise("x", 3, 64, 64), weights_backbone=None)
    for name, size in _DETECTORS.items():
        yield Net(
            name=f"{name}.backbone",
            source="torchvision",
            build=lambda name=name: backbone(name),
            inputs=noise("x", 3, size, size),
        )
    yield Net(
        name="retinanet_resnet18_fpn.backbone",
        source="torchvision",
        build=_retinanet_backbone,
        inputs=noise("x", 3, 96, 96),
    )
    yield _torchvision("raft_small", _two_images(128))
    yield _torchvision("r3d_18", noise("x", 3, 4, 32, 32))
    for name, (size, options) in _TIMM.items():
        yield Net(
            name=name,
            source="timm",
            build=lambda name=name, options=options: from_timm(name, **options),
            inputs=noise("x", 3, size, size),
        )
    yield from _transformers()
    for name, net in zoo_nets.NETS.items():
        yield Net(name=name, source="here", build=net.build, inputs=noise("x", *net.shape))


NETS: Mapping[str, Net] = {f"{net.source}/{net.name}": net for net in _nets()}
