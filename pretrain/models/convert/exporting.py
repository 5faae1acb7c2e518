"""`pretrain export`: a checkpoint of ours -> a folder that `transformers`' own class loads with equal outputs.

Their class computes fixed inputs beside ours before anything is written, so a setting that their class reads otherwise
is an error and not another model.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.align import align_target
from pretrain.models.convert.blip import blip_target
from pretrain.models.convert.clip import clip_target
from pretrain.models.convert.lxmert import lxmert_target
from pretrain.models.convert.probe import Probe, difference
from pretrain.models.convert.rules import convert
from pretrain.models.convert.targets import Target, objective
from pretrain.models.convert.vilt import vilt_target
from pretrain.models.convert.visual_bert import visual_bert_target
from pretrain.models.patches import PatchEmbedder
from pretrain.models.regions import RegionEmbedder
from pretrain.models.vision import ImageEncoder
from pretrain.objectives.itc import ITC
from shards.errors import Stopped, UserError
from shards.storage import replace_folder_atomically

MARK = "tokenizer_config.json"
TOLERANCE = 1e-4  # of outputs that are at most 1; measured at most 1e-6


def export_transformers(checkpoint: Checkpoint, out: Path, allow: Collection[str], overwrite: bool) -> float:
    """Writes `out` for `from_pretrained` of their class and returns the largest difference of any output.

    Args:
        allow: Names of tensors that may be left over or missing: heads that their class, or ours, lacks.

    Raises:
        UserError: a composition that no class of transformers has, or tensors without a place there.
        Stopped: their class computes something else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for what their class has and ours lacks
        target = _kind(checkpoint)(checkpoint)
    theirs = target.theirs.eval()
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    made = convert(target.table.reversed(), given_tensors(checkpoint), wanted, f"`ckpt` (={checkpoint.path})", allow)
    theirs.load_state_dict(made, strict=False)
    with torch.inference_mode():
        apart = difference(target.compare(theirs, Probe(checkpoint)))
    if not apart <= TOLERANCE:
        name = type(theirs).__name__
        raise Stopped(f"{name} computes other outputs (apart by {apart:.1e}), so nothing is written")
    logging.disable_progress_bar()
    with replace_folder_atomically(out, overwrite, mark=MARK) as folder:
        theirs.save_pretrained(folder)
        _save_words(folder, checkpoint, target.segments)
        if target.processor:
            _save_image_processor(folder, checkpoint, target.processor)
    return apart


def export_text(checkpoint: Checkpoint, out: Path, overwrite: bool) -> None:
    """Writes `out` for `AutoModel`: the text encoder alone, which is one of their classes already.

    Raises:
        UserError: it only embeds.
    """
    bert = checkpoint.task.model.text.bert
    if not bert.config.num_hidden_layers:
        raise UserError(f"`ckpt` (={checkpoint.path}) has no text encoder of its own: its text is only embedded")
    logging.disable_progress_bar()
    with replace_folder_atomically(out, overwrite, mark=MARK) as folder:
        bert.save_pretrained(folder)
        _save_words(folder, checkpoint, segments=checkpoint.config.model.text.kind != "clip")


def _kind(checkpoint: Checkpoint) -> Callable[[Checkpoint], Target]:
    """The nearest class, which may still refuse.

    Raises:
        UserError: none is near.
    """
    model, vision = checkpoint.config.model, checkpoint.task.model.vision
    match model.fusion.trunk:
        case "none":
            return clip_target if model.text.kind == "clip" else align_target
        case "text_queries_image":
            return blip_target
        case "joint" if isinstance(vision, RegionEmbedder):
            return visual_bert_target
        case "joint":
            return vilt_target
        case "co_attention":
            return lxmert_target
    raise UserError(f"`ckpt` (={checkpoint.path}) has `model.fusion.trunk` (={model.fusion.trunk}), and no class has")


def given_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All of the checkpoint's, its temperature as it is used."""
    given: dict[str, Tensor] = checkpoint.task.state_dict()
    itc = objective(checkpoint.task, "itc")
    if isinstance(itc, ITC):
        given["objectives.itc.log_temperature"] = itc.temperature.detach().log()  # their classes do not clamp it
    return given


def _save_words(folder: Path, checkpoint: Checkpoint, segments: bool) -> None:
    """For `AutoTokenizer`."""
    checkpoint.tokenizer.save(folder)
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    said = checkpoint.tokenizer.for_transformers(checkpoint.config.data.max_tokens)
    _write_json(folder / MARK, said | {"model_input_names": names})


def _save_image_processor(folder: Path, checkpoint: Checkpoint, kind: str) -> None:
    """For `AutoProcessor`, of class `kind`."""
    image = _image_processor(checkpoint.config.model.image_size, checkpoint.task.model.vision)
    _write_json(folder / "preprocessor_config.json", image | {"processor_class": kind})
    _write_json(folder / "processor_config.json", {"processor_class": kind, "image_processor": image})


def _image_processor(size: int, vision: Any) -> dict[str, Any]:
    """What `CLIPImageProcessor` does: resized to the square without a crop, bicubic, as our loader does."""
    if isinstance(vision, PatchEmbedder):
        mean, std = [vision.config.mean] * 3, [vision.config.std] * 3
    else:
        assert isinstance(vision, ImageEncoder)
        mean, std = (vision.mean / 255).tolist(), (vision.std / 255).tolist()
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n")
