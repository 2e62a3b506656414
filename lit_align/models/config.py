"""The architecture of the shared backbone, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from lit_align.errors import UserError


@dataclass
class BackboneConfig:
    """Architecture of the trunk that agents and reward models share.

    The defaults are the `tiny` size (about 1.5M parameters, 64x64 pixels). Eight layers of width 1024
    and 16 channels at 128x128 make about the paper's 103M; the paper's own shape could not be read.

    Attributes:
        image_size: Height and width of the frames in pixels; a power of two, 32 or more.
        channels: Channels after the encoder's first convolution; they double at every halving of the image.
        blocks: ConvNeXt blocks before each halving. 0 leaves plain strided convolutions, the quickest on a CPU.
        width: Width of the transformer, d.
        layers: Number of transformer layers.
        heads: Number of attention heads; `width / heads` must be even (rotary positions).
        context: Sliding attention window in frames, H in the paper (32). The receptive field is
            `layers * (context - 1) + 1` frames.
        mlp_ratio: Hidden width of a layer's MLP over `width`.
        norm: `layernorm` or `rmsnorm`.
        qk_norm: Normalise queries and keys (RMS), which steadies large models in low precision.
        rope_base: Base of the rotary position frequencies.
    """

    image_size: int = 64
    channels: int = 16
    blocks: int = 0
    width: int = 160
    layers: int = 4
    heads: int = 5
    context: int = 32
    mlp_ratio: float = 4.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    qk_norm: bool = False
    rope_base: float = 100.0

    def check(self) -> None:
        """Raises ValueError with every field that does not fit, each with what is expected."""
        wrong: list[str] = []
        if self.image_size < 32 or self.image_size & (self.image_size - 1):
            wrong.append(f"image_size is {self.image_size}; expected a power of two, 32 or more")
        wrong += [
            f"{name} is {getattr(self, name)}; expected 1 or more"
            for name in ("channels", "width", "layers", "heads", "context")
            if getattr(self, name) < 1
        ]
        if self.blocks < 0:
            wrong.append(f"blocks is {self.blocks}; expected 0 or more")
        if self.heads >= 1 and (self.width % self.heads or (self.width // self.heads) % 2):
            wrong.append(f"width {self.width} over {self.heads} heads; expected an even whole number for each head")
        if self.norm not in ("layernorm", "rmsnorm"):
            wrong.append(f"norm is {self.norm!r}; expected 'layernorm' or 'rmsnorm'")
        if self.mlp_ratio <= 0 or self.rope_base <= 1:
            wrong.append(
                f"mlp_ratio is {self.mlp_ratio} and rope_base {self.rope_base}; expected more than 0 and more than 1"
            )
        if wrong:
            raise UserError("the backbone cannot be built: " + "; ".join(wrong))

    @property
    def receptive_field(self) -> int:
        """How many frames back an output can depend on, itself included."""
        return self.layers * (self.context - 1) + 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BackboneConfig:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: An unknown key, a wrong type or a value that does not fit.
        """
        if not isinstance(data, dict):
            raise UserError(f"the backbone's config is a {type(data).__name__}; expected an object of fields")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UserError(f"unknown keys {unknown} in the backbone's config; known are {sorted(known)}")
        hints = get_type_hints(cls)
        for key, value in data.items():
            choices = get_args(hints[key])
            wanted = str if choices else hints[key]
            ok = (
                isinstance(value, bool)
                if wanted is bool
                else isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
            )
            if not ok:
                raise UserError(f"'{key}' in the backbone's config is {value!r}; expected {wanted.__name__}")
        config = cls(**data)
        config.check()
        return config
