"""`pretrain export --format open_clip`: a CLIP of ours -> a folder that open_clip opens as `local-dir:FOLDER`.

What is written is read back by the table of the import before it is written, and must be the same bit for bit.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.clip import OPEN_CLIP, check_clip, is_quick
from pretrain.models.convert.exporting import given_tensors
from pretrain.models.convert.rules import OPERATIONS, convert
from pretrain.models.convert.targets import vit_fields
from pretrain.models.vision import ImageEncoder
from shards.errors import Stopped, UserError
from shards.storage import replace_folder_atomically

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def export_open_clip(checkpoint: Checkpoint, out: Path, allow: Collection[str], overwrite: bool) -> None:
    """Writes `out`.

    Args:
        allow: Names of our tensors that may be left out: heads that CLIP lacks.

    Raises:
        UserError: a composition that is no CLIP, or tensors without a place in it.
        Stopped: what would be written does not read back as it was.
    """
    vision = check_clip(checkpoint, "CLIP of open_clip")
    if checkpoint.tokenizer.last_id != len(checkpoint.tokenizer) - 1:
        raise UserError(
            f"`ckpt` (={checkpoint.path}) is no CLIP of open_clip: texts end with id {checkpoint.tokenizer.last_id}, "
            "and it takes the largest id for the end"
        )
    given = given_tensors(checkpoint)
    made = _their_tensors(given, f"`ckpt` (={checkpoint.path})", allow)
    ours = {name: given[name].shape for name in given if not any(name.startswith(head) for head in _heads(checkpoint))}
    for name, tensor in convert(OPEN_CLIP, made, ours, "what was made", ()).items():
        if not torch.equal(tensor, given[name]):
            raise Stopped(f"`{name}` would not come back as it was, so nothing is written")
    with replace_folder_atomically(out, overwrite, mark=CONFIG) as folder:
        save_file(made, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(_config(checkpoint, vision), indent=1) + "\n")
        checkpoint.tokenizer.save(folder)
        words = checkpoint.tokenizer.for_transformers(checkpoint.config.data.max_tokens)
        (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=1) + "\n")


def _their_tensors(given: dict[str, Tensor], place: str, allow: Collection[str]) -> dict[str, Tensor]:
    """No class is at hand that could say their shapes: they are what the table makes."""
    table = OPEN_CLIP.reversed()
    made: dict[str, Tensor] = {}
    for step in table.steps(given):
        parts = [given[name] for name in step.theirs]
        made |= zip(step.ours, OPERATIONS[step.how](parts, [None] * len(step.ours)), strict=True)
    shapes = {name: _squeezed(name, tensor).shape for name, tensor in made.items()}
    return convert(table, given, shapes, place, allow)


def _squeezed(name: str, tensor: Tensor) -> Tensor:
    """Theirs have no dimension for the batch, and a scale without any."""
    return tensor if name.endswith((".weight", ".bias")) else tensor.squeeze()


def _heads(checkpoint: Checkpoint) -> list[str]:
    return [f"objectives.{name}." for name, _ in checkpoint.task.objectives.items() if name != "itc"]


def _config(checkpoint: Checkpoint, vision: ImageEncoder) -> dict[str, Any]:
    model, text = checkpoint.config.model, checkpoint.task.model.text.bert.config
    seen = vit_fields(vision, model.image_size)
    width = seen["hidden_size"]
    return {
        "model_cfg": {
            "embed_dim": model.embedding_dim,
            "quick_gelu": is_quick(vision),
            "vision_cfg": {
                "image_size": model.image_size,
                "layers": seen["num_hidden_layers"],
                "width": width,
                "patch_size": seen["patch_size"],
                "head_width": width // seen["num_attention_heads"],
                "mlp_ratio": seen["intermediate_size"] / width,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                "hf_tokenizer_name": ".",  # any name: the files lie beside this one
            },
        },
        "preprocess_cfg": {
            "mean": (vision.mean / 255).tolist(),
            "std": (vision.std / 255).tolist(),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
