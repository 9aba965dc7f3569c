# SPDX-License-Identifier: Apache-2.0
"""Ten of the zoo's larger networks at the size of their pictures, weights random, for ``bench_scale``.

torchvision's, settled as in ``zoo_coverage``; of the detector the backbone, as there. Nothing is fetched.
"""

from collections.abc import Mapping

from torch import nn

from benchmarks import zoo, zoo_coverage

PIXELS, SAMPLES, BATCH = 224, 128, 16
# Name -> options of its builder.
NETS: Mapping[str, Mapping[str, object]] = {
    "vgg16_bn": {},
    "resnet50": {},
    "wide_resnet50_2": {},
    "deeplabv3_resnet50": {"weights_backbone": None},
    "vit_b_16": {},
    "convnext_tiny": {},
    "efficientnet_v2_s": {},
    "densenet121": {},
    "swin_t": {},
    "fasterrcnn_resnet50_fpn.backbone": {},
}


def build(name: str, pixels: int = PIXELS) -> nn.Module:
    """One of the networks.

    Args:
        name: key of ``NETS``.
        pixels: height and width of the pictures it will get.

    Returns:
        The network, in eval mode.
    """
    options = dict(NETS[name])
    if name == "vit_b_16":
        options |= {"image_size": pixels}
    detector, is_backbone, _ = name.partition(".backbone")
    return zoo_coverage.build(
        zoo.Net(
            name=name,
            source="torchvision",
            build=lambda: (
                zoo_coverage.backbone(detector) if is_backbone else zoo.from_torchvision(name, **options)
            ),
            inputs=zoo.noise("x", 3, pixels, pixels),
        )
    )
