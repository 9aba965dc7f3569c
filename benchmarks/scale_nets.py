# SPDX-License-Identifier: Apache-2.0
"""Ten of the zoo's larger networks at the size of their pictures, weights random, for ``bench_scale``.

torchvision's, settled as in ``zoo_coverage``. Of the detector every box is kept and as many come out whatever
the weights, as there; so its outputs can be compared. Nothing is fetched.
"""

from collections.abc import Mapping

from torch import nn

from benchmarks import resnet50, zoo, zoo_coverage

PIXELS, SAMPLES, BATCH = 224, 128, 16
_DETECTOR: Mapping[str, object] = {
    "weights_backbone": None,
    "rpn_post_nms_top_n_test": 20,
    "box_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "box_detections_per_img": 10,
}
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
    "fasterrcnn_resnet50_fpn": _DETECTOR,
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
    if is_detector(name):
        options |= {"min_size": pixels, "max_size": pixels}
    return zoo_coverage.build(
        zoo.Net(
            name=name,
            source="torchvision",
            build=lambda: zoo.from_torchvision(name, **options),
            inputs=zoo.noise("x", 3, pixels, pixels),
        )
    )


def batches(name: str, samples: int = SAMPLES, pixels: int = PIXELS, batch: int = BATCH) -> list[object]:
    """Smooth random pictures, as the network takes them.

    Args:
        name: key of ``NETS``.
        samples: pictures in all.
        pixels: height and width.
        batch: pictures of a batch.

    Returns:
        The batches: tensors (N, 3, H, W); for the detector a tuple of a list of N pictures (3, H, W), 0 to 1.
    """
    parts = resnet50.batches(samples, pixels, batch)
    return [(list(part.sigmoid()),) if is_detector(name) else part for part in parts]


def is_detector(name: str) -> bool:
    """Whether a network takes lists of pictures, and returns boxes."""
    return NETS[name] is _DETECTOR
