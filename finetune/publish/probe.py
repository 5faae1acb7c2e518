"""Opens an export in a process of its own and compares what it computes with what the checkpoint computes.

    python -m finetune.publish.probe FOLDER OUT        the fresh process: outputs for fixed inputs, as safetensors

A file that was written from memory can lack what memory had; another process sees only the folder.
"""

import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.models.interface import ImageInput, TextInput
from shards.errors import Stopped

TEXTS = ("a red kite over water", "two dogs", "the quick brown fox jumps over the lazy dog by the river bank")
TOLERANCE = 1e-5  # both run the same code on the same machine; measured 0 on one thread


@torch.inference_mode()
def outputs(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What a checkpoint computes for fixed texts and noise: tokens, embeddings, and matching scores if it has any."""
    model, task = checkpoint.task.model, checkpoint.task
    text = model.encode_text(TextInput(*checkpoint.tokenizer.batch(TEXTS, checkpoint.config.data.max_tokens)))
    image = model.encode_image(_noise(model.vision.example(), len(TEXTS)))
    found = {"text_tokens": text.tokens_BTD, "image_tokens": image.tokens_BTD}
    if text.shared_BE is not None and image.shared_BE is not None:
        found |= {"text": text.shared_BE, "image": image.shared_BE}
    if task.matcher is not None:
        found["match"] = task.matcher.score(model.fuse(text, model.remember(image)))
    return {name: value.float().contiguous() for name, value in found.items()}


def reload_and_compare(folder: Path, checkpoint: Checkpoint) -> float:
    """Returns the largest difference of any output.

    Raises:
        Stopped: the fresh process could not open the folder, or computed something else.
    """
    expected = outputs(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "outputs.safetensors"
        command = [sys.executable, "-m", "finetune.publish.probe", str(folder), str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip() or "no message").splitlines()[-1]
            raise Stopped(f"the export cannot be opened by a fresh process, so nothing is sent: {reason}")
        return compare(expected, load_file(file))


def compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """The largest difference. Raises Stopped where it is more than `TOLERANCE`, or where outputs are missing."""
    if expected.keys() != found.keys():
        missing = ", ".join(sorted(expected.keys() ^ found.keys()))
        raise Stopped(f"the export computes other outputs than the checkpoint ({missing}), so nothing is sent")
    apart = {name: float((expected[name] - found[name]).abs().max()) for name in expected}
    if other := [name for name, value in apart.items() if not value <= TOLERANCE]:  # NaN is not
        raise Stopped(f"the export computes another `{other[0]}` (apart by {apart[other[0]]:.1e}), so nothing is sent")
    return max(apart.values())


def _noise(example: ImageInput, rows: int) -> ImageInput:
    """Random pixels or region features in the shape of `example`."""
    generator = torch.Generator().manual_seed(0)

    def fill(value: Tensor | None) -> Tensor | None:
        if value is None or value.dtype == torch.bool:
            return value
        if value.dtype == torch.uint8:
            return torch.randint(0, 256, value.shape, generator=generator, dtype=torch.uint8)
        return torch.rand(value.shape, generator=generator)

    repeated = example.rows(torch.zeros(rows, dtype=torch.long))
    return replace(repeated, **{field.name: fill(getattr(repeated, field.name)) for field in fields(repeated)})


if __name__ == "__main__":
    save_file(outputs(load_checkpoint(sys.argv[1])), sys.argv[2])
