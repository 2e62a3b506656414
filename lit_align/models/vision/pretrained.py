"""Any vision backbone of Hugging Face Transformers as the encoder, such as DINOv2: `pip install lit-align[vision]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.errors import UserError
from lit_align.models.config import BackboneConfig
from lit_align.models.vision.frames import compute_dtype

# What the processor of a checkpoint says of its pixels, and ImageNet's values where it says nothing.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class PretrainedEncoder(nn.Module):
    """A vision model of the Hub or of a folder, then a projection.

    The model is fetched when an agent is first made. Its configuration and the mean, deviation and size of its pixels
    are kept in the agent's own `config.json`, its weights in the agent's own `model.safetensors`, so that the agent
    loads without the Hub. Nothing of it runs code of a repository (`trust_remote_code` is off), and its pixels are
    resized and scaled here, without torchvision.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        transformers = need_transformers()
        if config.pretrained_config is None:
            self.model, config.pretrained_config = _fetch(transformers, config)
        else:
            facts = {k: v for k, v in config.pretrained_config["model"].items() if k != "model_type"}
            try:
                made = transformers.AutoConfig.for_model(config.pretrained_config["model"]["model_type"], **facts)
                self.model = transformers.AutoModel.from_config(made)
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"pretrained_config describes no vision model that is known: {error}") from error
        self.pixels: int = config.pretrained_config["size"]
        mean, std = config.pretrained_config["mean"], config.pretrained_config["std"]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.norm = nn.LayerNorm(_width(self.model.config))
        self.project = nn.Linear(_width(self.model.config), config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(N, H, W, 3)`, uint8, to embeddings `(N, width)`."""
        dtype = compute_dtype(frames, self.project.weight)
        x = frames.permute(0, 3, 1, 2).float() / 255
        if x.shape[-1] != self.pixels:
            x = F.interpolate(x, (self.pixels, self.pixels), mode="bicubic", antialias=True).clamp(0, 1)
        out = self.model(pixel_values=((x - self.mean) / self.std).to(dtype))
        y: Tensor = self.project(self.norm(_pooled(out)))
        return y


def need_transformers() -> Any:
    """The `transformers` package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("encoder 'pretrained' needs Transformers: pip install lit-align[vision]") from error
    return transformers


def _fetch(transformers: Any, config: BackboneConfig) -> tuple[nn.Module, dict[str, Any]]:
    name = config.pretrained or ""  # `check` saw to it that there is one
    try:
        found = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        # Before the weights are fetched: a language model has no pixels.
        _width(found)
        # On the meta device only the shape is wanted.
        meta = torch.empty(0).device.type == "meta"
        model = (
            transformers.AutoModel.from_config(found)
            if meta
            else transformers.AutoModel.from_pretrained(name, config=found, use_safetensors=True)
        )
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"the vision backbone '{name}' cannot be loaded: {said}; give a folder or a Hub id") from error
    pixels = _processor(name)
    size = pixels.get("crop_size") or pixels.get("size") or {}
    sides = [size] if isinstance(size, int) else [size[k] for k in ("height", "shortest_edge") if size.get(k)]
    sides.append(getattr(found, "image_size", None) or 224)
    facts = {
        "model": found.to_dict() | {"model_type": found.model_type},
        "size": int(sides[0]),
        "mean": list(pixels.get("image_mean") or _MEAN),
        "std": list(pixels.get("image_std") or _STD),
    }
    return model, facts


def _processor(name: str) -> dict[str, Any]:
    """What the checkpoint's `preprocessor_config.json` says; nothing where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(name)[0])
    except OSError:
        return {}


def _width(config: Any) -> int:
    for name in ("hidden_size", "num_features"):
        if isinstance(getattr(config, name, None), int) and hasattr(config, "num_channels"):
            return int(getattr(config, name))
    sizes = getattr(config, "hidden_sizes", None)
    if sizes and hasattr(config, "num_channels"):
        return int(sizes[-1])
    raise ValueError(f"a model of type '{getattr(config, 'model_type', '?')}' is no vision backbone")


def _pooled(out: Any) -> Tensor:
    """One vector a frame `(N, C)`: the model's own pooling, else the mean over its patches or its grid."""
    pooled = getattr(out, "pooler_output", None)
    if pooled is not None:
        flat: Tensor = pooled.flatten(1)
        return flat
    last: Tensor = out.last_hidden_state
    return last.mean(1) if last.ndim == 3 else last.mean((2, 3))
