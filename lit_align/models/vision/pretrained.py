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
# What a model's configuration may ask for beside its shape: code to fetch, other precisions, other checkpoints.
_NOT_KEPT = (
    "auto_map",
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "use_pretrained_backbone",
    "use_timm_backbone",
    "backbone",
    "dtype",
    "torch_dtype",
    "model_type",
)


class PretrainedEncoder(nn.Module):
    """A vision model of the Hub or of a folder, then a projection.

    The model is fetched when an agent is first made, and again where that run is resumed from a checkpoint. Its
    configuration and the mean, deviation and size of its pixels are kept in the agent's own `config.json`, its weights
    in the agent's own `model.safetensors`, so that the agent loads without the Hub. Nothing of it runs code of a
    repository, and its pixels are resized and scaled here, without torchvision.

    It always runs in evaluation mode, with its weights training or not: dropped paths and the statistics of a batch
    would make the policy that trains another one than the policy that plays.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        transformers = need_transformers()
        pooled = True
        try:
            if config.pretrained_config is None:
                self.model, config.pretrained_config = _fetch(transformers, config)
            else:
                self.model = _build(transformers, dict(config.pretrained_config["model"]))
            facts = config.pretrained_config
            width, pooled = _width(self.model.config), bool(facts.get("pooled", True))
            self.pixels = int(facts["size"])
            mean, std = torch.tensor(facts["mean"]), torch.tensor(facts["std"])
        except UserError:
            raise
        except Exception as error:  # whatever Transformers makes of a folder or a configuration that is wrong
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the vision backbone '{config.pretrained}' cannot be loaded: {said}; give a folder or a Hub id"
            ) from error
        self.pooled = pooled
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor
        for name, parameter in self.model.named_parameters():
            if name.endswith("mask_token"):  # of masked pre-training: no frame ever reaches it, and DDP would wait
                parameter.requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.width)

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Changes the mode of the projection; the model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(N, H, W, 3)`, uint8, to embeddings `(N, width)`."""
        dtype = compute_dtype(frames, self.project.weight)
        x = frames.permute(0, 3, 1, 2).float() / 255
        if x.shape[-1] != self.pixels:
            x = F.interpolate(x, (self.pixels, self.pixels), mode="bicubic", antialias=True).clamp(0, 1)
        out = self.model(pixel_values=((x - self.mean) / self.std).to(dtype))
        y: Tensor = self.project(self.norm(self._one_vector(out)))
        return y

    def _one_vector(self, out: Any) -> Tensor:
        """A vector a frame `(N, C)`: the model's own pooling, else the mean over its patches or its grid."""
        pooled = getattr(out, "pooler_output", None) if self.pooled else None
        if pooled is not None:
            flat: Tensor = pooled.flatten(1)
            return flat
        last: Tensor = out.last_hidden_state
        return last.mean(1) if last.ndim == 3 else last.mean((2, 3))


def need_transformers() -> Any:
    """The `transformers` package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("encoder 'pretrained' needs Transformers: pip install 'lit-align[vision]'") from error
    return transformers


def _build(transformers: Any, facts: dict[str, Any]) -> nn.Module:
    """A model with random weights of a kept configuration, which comes from a file that anybody may have written."""
    kind = str(facts.get("model_type"))
    kept = {key: value for key, value in facts.items() if key not in _NOT_KEPT and not key.startswith("_")}
    made = transformers.AutoConfig.for_model(kind, **kept)
    _width(made)
    model: nn.Module = transformers.AutoModel.from_config(made, trust_remote_code=False)
    return model.float()


def _fetch(transformers: Any, config: BackboneConfig) -> tuple[nn.Module, dict[str, Any]]:
    name = config.pretrained or ""  # `check` saw to it that there is one
    found = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    _width(found)  # before the weights are fetched: a language model has no pixels
    facts: dict[str, Any] = {"model": {k: v for k, v in found.to_dict().items() if k not in _NOT_KEPT}}
    facts["model"]["model_type"] = found.model_type
    if torch.empty(0).device.type == "meta":  # only the shape is wanted
        model, missing = _build(transformers, facts["model"]), set[str]()
    else:
        with torch.device("cpu"):  # elsewhere Transformers asks for Accelerate; the Trainer moves the network itself
            model, told = transformers.AutoModel.from_pretrained(
                name,
                config=found,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        missing = set(told["missing_keys"])
    pixels = _processor(name)
    size = pixels.get("crop_size") or pixels.get("size") or {}
    sides = [size] if isinstance(size, int) else [size[k] for k in ("height", "shortest_edge") if size.get(k)]
    sides.append(getattr(found, "image_size", None) or 224)
    facts["size"] = int(sides[0])
    facts["mean"], facts["std"] = list(pixels.get("image_mean") or _MEAN), list(pixels.get("image_std") or _STD)
    # A pooling layer that the checkpoint lacks is random: then the mean over patches is read.
    facts["pooled"] = not any("pooler" in key for key in missing)
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
    raise UserError(f"a model of type '{getattr(config, 'model_type', '?')}' is no vision backbone")
