"""`pretrain export`: a checkpoint of ours -> a folder that `transformers`' own class loads with equal outputs.

Their class computes fixed inputs beside ours before anything is written, so a setting that their class reads otherwise
is an error and not another model. CLIP alone so far.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from timm.layers import QuickGELU
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from pretrain.checkpoint import Checkpoint
from pretrain.models.config import ModelConfig
from pretrain.models.convert.clip import CLIP, EPS
from pretrain.models.convert.rules import convert
from pretrain.models.interface import ImageInput, TextInput
from pretrain.models.vision import ImageEncoder
from pretrain.objectives.itc import ITC
from shards.errors import Stopped, UserError
from shards.storage import replace_folder_atomically

MARK = "preprocessor_config.json"
LEGACY_END = 2  # the class takes the largest id for the end of a text where `eos_token_id` is this
TOLERANCE = 1e-4  # of vectors of length 1; measured at most 1e-6


def export_transformers(checkpoint: Checkpoint, out: Path, allow: Collection[str], overwrite: bool) -> float:
    """Writes `out` for `CLIPModel.from_pretrained` and returns the largest difference of any output.

    Args:
        allow: Names of tensors that may be left over or missing: heads that `CLIPModel` lacks.

    Raises:
        UserError: a composition that no class of transformers has, or tensors without a place there.
        Stopped: their class computes something else.
    """
    config = clip_config(checkpoint)
    theirs = CLIPModel(config).eval()
    given = checkpoint.task.state_dict()
    itc = dict(checkpoint.task.objectives.items()).get("itc")
    if isinstance(itc, ITC):
        given["objectives.itc.log_temperature"] = itc.temperature.detach().log()  # their class does not clamp it
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(convert(CLIP.reversed(), given, wanted, f"`ckpt` (={checkpoint.path})", allow), strict=False)
    apart = difference(checkpoint, theirs)
    if not apart <= TOLERANCE:
        raise Stopped(f"CLIPModel computes other embeddings (apart by {apart:.1e}), so nothing is written")
    with replace_folder_atomically(out, overwrite, mark=MARK) as folder:
        theirs.save_pretrained(folder)
        checkpoint.tokenizer.save(folder)
        _write_json(
            folder / "tokenizer_config.json", checkpoint.tokenizer.for_transformers(checkpoint.config.data.max_tokens)
        )
        _write_json(folder / MARK, _preprocessor(checkpoint.config.model, checkpoint.task.model.vision))
    return apart


def clip_config(checkpoint: Checkpoint) -> CLIPConfig:
    """The configuration of the `CLIPModel` that computes what the checkpoint does.

    Raises:
        UserError: there is none.
    """
    model, vision = checkpoint.config.model, checkpoint.task.model.vision
    if reason := _no_clip(model, vision):
        raise UserError(f"`ckpt` (={checkpoint.path}) is not CLIP, which alone can be exported: {reason}")
    assert isinstance(vision, ImageEncoder)
    if checkpoint.tokenizer.last_id == LEGACY_END:
        raise UserError(
            f"`ckpt` (={checkpoint.path}) ends texts with id {LEGACY_END}, which CLIPModel takes for an old vocabulary"
        )
    ends = {"bos_token_id": checkpoint.tokenizer.first_id, "eos_token_id": checkpoint.tokenizer.last_id}
    text: dict[str, Any] = checkpoint.task.model.text.bert.config.to_dict()
    backbone = vision.backbone
    block = backbone.blocks[0]
    seen = {
        "image_size": model.image_size,
        "patch_size": backbone.patch_embed.patch_size[0],
        "hidden_size": backbone.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.act, QuickGELU) else "gelu",
        "layer_norm_eps": EPS,
    }
    words = text | ends | {"pad_token_id": checkpoint.tokenizer.pad_id}
    return CLIPConfig(text_config=words, vision_config=seen, projection_dim=model.embedding_dim)


def _no_clip(model: ModelConfig, vision: Any) -> str | None:
    """What CLIPModel does not have, in the words of the configuration."""
    if model.fusion.trunk != "none":
        return f"`model.fusion.trunk` (={model.fusion.trunk}) is not none"
    if model.text.kind != "clip" or model.text.pooling != "last" or model.text.width:
        return f"`model.text` (={model.text.kind}, {model.text.pooling}) is not clip with the last token"
    if model.projection_bias or model.embedding_dim is None:
        return "`model.projection_bias` (=true) is not false, or there is no shared space"
    plain = isinstance(vision, ImageEncoder) and vision.config.width is None
    backbone = vision.backbone if plain else None
    if getattr(backbone, "global_pool", None) != "token" or not hasattr(backbone, "norm_pre"):
        return f"`model.vision.name` (={model.vision.name}) is not a vision transformer of CLIP"
    return None


@torch.inference_mode()
def difference(checkpoint: Checkpoint, theirs: CLIPModel) -> float:
    """The largest difference between embeddings of noise and of random texts."""
    generator = torch.Generator().manual_seed(0)
    model, tokenizer = checkpoint.task.model, checkpoint.tokenizer
    size, length = checkpoint.config.model.image_size, min(8, model.text.longest)
    pixels_BHWC = torch.randint(0, 256, (2, size, size, 3), generator=generator, dtype=torch.uint8)
    ids_BL = torch.randint(0, len(tokenizer), (2, length), generator=generator)
    ids_BL[ids_BL == tokenizer.last_id] = tokenizer.first_id
    ids_BL[0, length - 1 :], ids_BL[1, length // 2 :] = tokenizer.last_id, tokenizer.last_id
    mask_BL = torch.arange(length) < torch.tensor([[length], [length // 2 + 1]])
    assert isinstance(model.vision, ImageEncoder)
    normal_BCHW = ((pixels_BHWC.float() - model.vision.mean) / model.vision.std).permute(0, 3, 1, 2)
    expected = theirs(input_ids=ids_BL, attention_mask=mask_BL.long(), pixel_values=normal_BCHW)
    image_BE = model.encode_image(ImageInput(pixels_BHWC)).embedding_BE
    text_BE = model.encode_text(TextInput(ids_BL, mask_BL)).embedding_BE
    return max(_apart(image_BE, expected.image_embeds), _apart(text_BE, expected.text_embeds))


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _preprocessor(model: ModelConfig, vision: Any) -> dict[str, Any]:
    """What `CLIPImageProcessor` does: resized to the square without a crop, bicubic, as our loader does."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": model.image_size, "width": model.image_size},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (vision.mean / 255).tolist(),
        "image_std": (vision.std / 255).tolist(),
    }


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n")
