"""The named sizes of configs/sizes."""

from __future__ import annotations

import yaml

from lit_align.models.config import BackboneConfig
from tools.bench._machine import ROOT


def load_size(name: str) -> BackboneConfig:
    """The architecture of `tiny`, `small`, `paper`, `300m` or `1b`."""
    content = yaml.safe_load((ROOT / "configs" / "sizes" / f"{name}.yaml").read_text())
    return BackboneConfig.from_dict(content["model"]["backbone"])
