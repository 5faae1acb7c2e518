"""A checkpoint as search uses it: texts and images to embeddings, and the matching head over pairs.

Shapes: Q texts, I images, P pairs, E embedding.
"""

from collections.abc import Sequence

import numpy as np
import torch

from finetune.recall import Scores
from finetune.search.nearest import Embeddings
from pretrain.checkpoint import Checkpoint
from pretrain.data.images import evaluation_images
from pretrain.models.interface import Encoded, TextInput
from shards.errors import UserError
from shards.sample import Sample

TEXT_BATCH = 256


class Encoder:
    """Not for several threads at once: the server gives it to one.

    Raises:
        UserError: a checkpoint whose two sides have no shared space.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        embedding_dim = checkpoint.config.model.embedding_dim
        if embedding_dim is None:
            raise UserError("`ckpt` has no shared space (`model.embedding_dim` is null), so it cannot search")
        itc = checkpoint.config.objectives.itc
        if itc is not None and itc.similarity != "pooled":
            raise UserError(
                f"`ckpt` compares {itc.similarity} (`objectives.itc.similarity`); search and scores compare one vector"
            )
        self.checkpoint, self.device, self.embedding_dim = checkpoint, torch.device(device), embedding_dim
        self.model = checkpoint.task.to(self.device).eval().model

    @property
    def matches(self) -> bool:
        """Whether there is a matching head to re-rank with."""
        return self.checkpoint.task.matcher is not None and self.checkpoint.config.model.fusion.trunk != "none"

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Encoded:
        """Texts past `data.max_tokens` are cut there."""
        ids_QL, mask_QL = self.checkpoint.tokenizer.batch(texts, self.checkpoint.config.data.max_tokens)
        return self.model.encode_text(TextInput(ids_QL, mask_QL).to(self.device))

    @torch.inference_mode()
    def images(self, samples: Sequence[Sample]) -> Encoded:
        """Encodes pixels, or regions where the model reads those.

        Raises:
            DamagedSample: an image that cannot be decoded.
            UserError: a sample without the regions that the model reads.
        """
        return self.model.encode_image(evaluation_images(samples, self.checkpoint.config).to(self.device))

    @torch.inference_mode()
    def match(self, text: Encoded, image: Encoded) -> Scores:
        """The matching head's log-odds of row i of the texts with row i of the images, float32 [P]."""
        matcher = self.checkpoint.task.matcher
        assert matcher is not None, "the caller asked `can_match`"
        return matcher.score(self.model.fuse(text, self.model.remember(image))).float().cpu().numpy()


def embeddings(encoded: Encoded) -> Embeddings:
    """float32 [rows, E], contiguous, on the CPU."""
    return np.ascontiguousarray(encoded.embedding_BE.float().cpu().numpy())


def text_embeddings(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """float32 [Q, E], a batch at a time; empty where there are none."""
    starts = range(0, len(texts), TEXT_BATCH)
    parts = [embeddings(encoder.texts(texts[start : start + TEXT_BATCH])) for start in starts]
    return np.concatenate(parts) if parts else np.empty((0, encoder.embedding_dim), np.float32)
