"""The architecture of the shared backbone, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lit_align.errors import UserError, shortly

MOST_BASE = 1e12
"""Of the rotary position frequencies; one that fits no number of the machine is a mistake."""
MOST = {
    "image_size": 4096,
    "vector_size": 10**6,
    "channels": 8192,
    "blocks": 256,
    "width": 2**16,
    "layers": 1024,
    "heads": 4096,
    "context": 2**20,
    "mlp_ratio": 256,
}
"""More than any network here has: a config from somewhere else does not keep the machine busy for ever."""


@dataclass
class BackboneConfig:
    """Architecture of the trunk that agents and reward models share.

    The defaults make a small network for a CPU; `configs/sizes/` holds named sizes, the paper's 103M among them.

    Attributes:
        image_size: Height and width of the frames in pixels; 0 if the agent sees no pixels. Encoders that halve the
            image need a power of two, 32 or more.
        vector_size: Numbers in a frame's vector observation; 0 if there is none. Both may be there, not neither.
        encoder: How frames become embeddings. `convnext`: strided convolutions and ConvNeXt blocks, as the paper's lab
            released; `impala`: the residual network of game agents; `patch`: matrix products alone, the quickest on a
            CPU; `pretrained`: a vision model of Hugging Face Transformers (`pip install lit-align[vision]`).
        channels: Channels of the encoder at a quarter of the image's resolution, doubled at every halving; `impala` has
            `channels`, 2 and 2 times as many in its three stacks.
        blocks: ConvNeXt blocks before each halving; residual blocks of each `impala` stack; `patch` has none. 0 leaves
            plain convolutions.
        pretrained: Hub id or folder of the vision model of `encoder: pretrained`.
        pretrained_config: The vision model's own configuration; filled in when the agent is made.
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
    vector_size: int = 0
    encoder: Literal["convnext", "impala", "patch", "pretrained"] = "convnext"
    channels: int = 16
    blocks: int = 0
    pretrained: str | None = None
    pretrained_config: dict[str, Any] | None = None
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
        wrong = self._wrong_observations()
        wrong += [
            f"{name} is {getattr(self, name)}; expected 1 or more"
            for name in ("channels", "width", "layers", "heads", "context")
            if getattr(self, name) < 1
        ]
        wrong += [
            f"{name} is {shortly(getattr(self, name), 80)}; expected {most} at most"
            for name, most in MOST.items()
            if getattr(self, name) > most
        ]
        if self.blocks < 0:
            wrong.append(f"blocks is {self.blocks}; expected 0 or more")
        if self.heads >= 1 and (self.width % self.heads or (self.width // self.heads) % 2):
            wrong.append(f"width {self.width} over {self.heads} heads; expected an even whole number for each head")
        if self.norm not in ("layernorm", "rmsnorm"):
            wrong.append(f"norm is {self.norm!r}; expected 'layernorm' or 'rmsnorm'")
        if not (self.mlp_ratio > 0 and 1 < self.rope_base <= MOST_BASE):
            wrong.append(
                f"mlp_ratio is {self.mlp_ratio} and rope_base {shortly(self.rope_base)}; expected more than 0, and "
                f"more than 1 and {MOST_BASE:g} at the most"
            )
        if wrong:
            raise UserError("the backbone cannot be built: " + "; ".join(wrong))

    def _wrong_observations(self) -> list[str]:
        wrong: list[str] = []
        if min(self.image_size, self.vector_size) < 0 or self.image_size == self.vector_size == 0:
            wrong.append(
                f"image_size is {self.image_size} and vector_size {self.vector_size}; expected 0 or more, and one of "
                "them more than 0"
            )
        halves = self.encoder != "pretrained" and self.image_size > 0
        if halves and (self.image_size < 32 or self.image_size & (self.image_size - 1)):
            wrong.append(f"image_size is {self.image_size}; expected a power of two, 32 or more")
        if self.encoder not in get_args(get_type_hints(BackboneConfig)["encoder"]):
            wrong.append(f"encoder is {self.encoder!r}; expected convnext, impala, patch or pretrained")
        if self.encoder == "pretrained" and not (self.pretrained or self.pretrained_config):
            wrong.append("encoder is 'pretrained' and no vision model is named; set pretrained to a Hub id or a folder")
        return wrong

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
            raise UserError(f"unknown keys {shortly(unknown, 80)} in the backbone's config; known are {sorted(known)}")
        hints = get_type_hints(cls)
        for key, value in data.items():
            if not _fits(value, hints[key]):
                raise UserError(
                    f"'{key}' in the backbone's config is {shortly(value, 80)}; expected {_name(hints[key])}"
                )
        config = cls(**data)
        config.check()
        return config


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type; a whole number will do for a float, a bool for nothing but a bool."""
    if get_origin(hint) is Literal:
        return isinstance(value, str)  # `check` knows which are allowed
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    plain = get_origin(hint) or hint
    if isinstance(value, bool):
        return plain is bool
    return isinstance(value, (int, float) if plain is float else plain)


def _name(hint: Any) -> str:
    return "str" if get_origin(hint) is Literal else getattr(hint, "__name__", str(hint))
