"""One optimizer step over a batch whose activations do not fit: gradient caching (GradCache, arXiv:2101.06983).

The parts of the model that are large, encoders and trunk, run over one micro batch of rows after the other and keep
nothing but their outputs. The objectives see the outputs of the whole batch at once, so contrast, hard negatives and
denominators are those of the global batch. The backward runs the parts again, one micro batch at a time, with the
random state that each had, and sends the gradient of its rows through. The gradient is that of one undivided step.

It costs one more forward. Accumulating the gradients of separate losses would not, but contrast cannot be split so.

Shapes: B rows.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from pretrain.models.interface import (
    Attention,
    Encoded,
    Fused,
    ImageInput,
    Memory,
    TextInput,
    VisionLanguageModel,
)
from pretrain.recompute import recomputed
from pretrain.rows import Rows

Out = TypeVar("Out", bound=Rows)


class MicroBatched:
    """A model that goes through a batch `rows` at a time; satisfies `pretrain.models.interface.VisionLanguageModel`."""

    def __init__(self, model: VisionLanguageModel, rows: int) -> None:
        self.model, self.micro_rows = model, rows
        self.shape = model.shape
        self.image_projection, self.text_projection = model.image_projection, model.text_projection

    @property
    def word_embedding_VD(self) -> Tensor:
        return self.model.word_embedding_VD

    def encode_image(self, image: ImageInput) -> Encoded:
        return self._in_parts(self.model.encode_image, image)

    def encode_text(self, text: TextInput, causal: bool = False) -> Encoded:
        return self._in_parts(lambda part: self.model.encode_text(part, causal), text)

    def remember(self, image: Encoded) -> Memory:
        """The image tokens as they are: keys and values of all layers are many times as large, so `fuse` makes them."""
        return Memory(image.mask_BT, image.tokens_BTD)

    def fuse(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        def one(text: Encoded, memory: Memory) -> Fused:
            assert memory.tokens_BND is not None
            image = Encoded(memory.tokens_BND, memory.mask_BN)
            return self.model.fuse(text, self.model.remember(image), attention)

        return self._in_parts(one, text, memory)

    def _in_parts(self, function: Callable[..., Out], *inputs: Rows) -> Out:
        count = len(_first(inputs[0]))
        outputs = []
        for start in range(0, count, self.micro_rows):
            parts = [value.rows(slice(start, start + self.micro_rows)) for value in inputs]
            outputs.append(_again_in_backward(function, *parts))
        return type(outputs[0]).concatenate(outputs)


def _again_in_backward(function: Callable[..., Out], *parts: Rows) -> Out:
    """Runs `function` without keeping what it computes on the way; a tensor stands for the device of all."""
    return recomputed(lambda _: function(*parts))(_first(parts[0]))


def _first(value: Rows) -> Tensor:
    tensors = (getattr(value, field.name) for field in fields(value))  # type: ignore[arg-type]  # a dataclass
    return next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
