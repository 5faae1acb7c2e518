"""A training step of CLIP against open_clip's own model and loss: same widths, depths, weights, token lists, pixels.

open_clip's text tower takes texts of exactly `context_length` tokens and its users pad to 77. A third arm is its model
built for 32, the least that holds every caption, as somebody who knows the lengths in advance would build it.

python -m benchmarks.model.clip [--size half]
"""

import torch
from open_clip import ClipLoss
from open_clip.model import CLIP as OpenClip
from torch import Tensor
from torch.nn import functional as F

from benchmarks.model.inputs import CLIP_WORDS, Captions, pixels
from benchmarks.model.steps import Arm, autocast, check, compare, parse
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.models.convert.clip import OPEN_CLIP, open_clip_settings
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import copy

USUAL, SHORT = 77, 32
SIZES = {
    "tiny": {"width": 128, "words": 64, "layers": 2, "embed": 32, "pairs": 8},
    "half": {"width": 384, "words": 256, "layers": 6, "embed": 256, "pairs": 64},
    "full": {"width": 768, "words": 512, "layers": 12, "embed": 512, "pairs": 16},
}
"""`full` is ViT-B/32, `half` has half its widths and depths."""


def published(size: dict[str, int], context: int) -> dict[str, object]:
    """What open_clip calls a model configuration."""
    vision = {"image_size": 224, "layers": size["layers"], "width": size["width"], "patch_size": 32}
    words = {"context_length": context, "vocab_size": CLIP_WORDS, "width": size["words"], "layers": size["layers"]}
    return {"embed_dim": size["embed"], "vision_cfg": vision, "text_cfg": words | {"heads": size["words"] // 64}}


def main() -> None:
    arguments = parse(__doc__, SIZES)
    size, device = SIZES[arguments.size], arguments.device
    arguments.pairs = pairs = arguments.pairs or size["pairs"]
    captions = Captions(arguments.annotations, "clip", SHORT)
    values = open_clip_settings(published(size, USUAL), ())
    config = parse_config(PretrainConfig, {name: values[name] for name in ("model", "objectives")})
    task, criterion = Task(config.model, config.objectives, CLIP_WORDS), ClipLoss()
    models = {context: OpenClip(**published(size, context)) for context in (USUAL, SHORT)}
    sources = copy(task, OPEN_CLIP, models[USUAL])
    for module in (task, *models.values()):
        module.to(device)
    task.autocast = torch.bfloat16 if device != "cpu" else None

    def batch(number: int) -> Batch:
        return captions.batch(number, pairs, pixels_BHWC=pixels(pairs, 224, 224, number)).to(device)

    batches = [batch(number) for number in range(arguments.rounds + 1)]
    vision = task.model.vision
    normal = [((b.pixels_BHWC.float() - vision.mean) / vision.std).permute(0, 3, 1, 2).contiguous() for b in batches]

    def peer(context: int) -> Arm:
        padded = [F.pad(b.token_ids_BL, (0, context - b.token_ids_BL.shape[1])) for b in batches]

        def loss(number: int) -> Tensor:
            with autocast(arguments):
                return criterion(*models[context](normal[number], padded[number]))

        return Arm(f"open_clip, {context} tokens", [models[context]], loss)

    ours = Arm("duostream", [task], lambda number: task(batches[number])["loss"])
    usual = peer(USUAL)
    check(ours, usual, task, sources)
    shape = (
        f"CLIP, image width {size['width']} and text width {size['words']}, {size['layers']} layers each, 224/32 pixels"
    )
    compare(arguments, [ours, usual, peer(SHORT)], captions, "open_clip_torch", shape)


if __name__ == "__main__":
    main()
