"""Frames to embeddings: one vector for each frame, trained with the rest.

An encoder is a module made of a `BackboneConfig` whose `forward` takes frames `(N, H, W, 3)`, uint8, and gives
embeddings `(N, width)`. To add one: a file here, a line in `ENCODERS`, its name in `BackboneConfig.encoder`.
"""

from __future__ import annotations

import importlib

from torch import nn

from lit_align.models.config import BackboneConfig

# Import paths, so that an encoder's own dependencies are met only by those who choose it.
ENCODERS = {
    "convnext": "lit_align.models.vision.convnext:ConvEncoder",
    "impala": "lit_align.models.vision.impala:ImpalaEncoder",
    "patch": "lit_align.models.vision.patch:PatchEncoder",
    "pretrained": "lit_align.models.vision.pretrained:PretrainedEncoder",
}


def make_encoder(config: BackboneConfig) -> nn.Module:
    """The encoder that a config names.

    Raises:
        UserError: It needs an extra that is not installed, or its weights cannot be found.
    """
    module, name = ENCODERS[config.encoder].split(":")
    encoder: nn.Module = getattr(importlib.import_module(module), name)(config)
    return encoder
