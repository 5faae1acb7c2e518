"""Scores of images with texts by a trained model: a dot product for all pairs, a matching head for chosen ones.

Identical texts are encoded once and share their scores bit for bit, so that they tie as they should: in a batch of
another length the same text differs in the last bits, which would break real ties at random.

Shapes: I images, U distinct texts, T texts, P pairs, B of a batch, N image tokens, L text tokens, D width, E embedding.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.recall import Indices, Scores
from finetune.retrieval import RetrievalSet
from pretrain.checkpoint import Checkpoint
from pretrain.data.images import evaluation_images
from pretrain.models.interface import Encoded, TextInput
from shards.console import Progress, progress


@dataclass(frozen=True)
class Batching:
    """How much goes through the model together. Fusing holds the keys and values of `images` images at a time."""

    images: int = 64
    texts: int = 256
    pairs: int = 256


@dataclass(frozen=True)
class Texts:
    """Encoded distinct texts without padding, on the CPU.

    Attributes:
        tokens_ND: float [sum of lengths, D].
        starts_U, lengths_U: int64 [U], where each text's tokens lie.
        embedding_UE: float [U, E].
    """

    tokens_ND: Tensor
    starts_U: Tensor
    lengths_U: Tensor
    embedding_UE: Tensor

    def rows(self, index_B: Tensor, device: torch.device) -> Encoded:
        """Those texts as a batch on `device`, padded to the longest of them."""
        lengths_B = self.lengths_U[index_B]
        place_L = torch.arange(int(lengths_B.max()))
        mask_BL = place_L < lengths_B[:, None]
        position_BL = torch.where(mask_BL, self.starts_U[index_B, None] + place_L, 0)
        tokens_BLD = self.tokens_ND[position_BL] * mask_BL[..., None]
        return Encoded(tokens_BLD.to(device), mask_BL.to(device), self.embedding_UE[index_B].to(device))


class Scorer:
    """A checkpoint and a retrieval set, encoded on demand.

    Args:
        device: Where the model runs; features wait on the CPU.
    """

    def __init__(
        self, checkpoint: Checkpoint, data: RetrievalSet, device: str = "cpu", batching: Batching | None = None
    ) -> None:
        self.checkpoint, self.data = checkpoint, data
        self.device, self.batching = torch.device(device), batching or Batching()
        checkpoint.task.to(self.device).eval()
        self._distinct = list(dict.fromkeys(data.texts))
        place = {text: number for number, text in enumerate(self._distinct)}
        self.distinct_T: Indices = np.array([place[text] for text in data.texts], np.int64)

    @torch.inference_mode()
    def similarity(self) -> Scores:
        """Cosine of every image with every text, float32 [I, T]. Keeps the encoded texts for `matching`."""
        self.texts = self._encode_texts()
        embeddings = []
        with progress("encode images", len(self.data.keys)) as bar:
            for part in _parts(np.arange(len(self.data.keys)), self.batching.images):
                embeddings.append(self._encode_images(part).embedding_BE.float().cpu())
                bar.advance(len(part))
        image_IE = torch.cat(embeddings)
        return (image_IE @ self.texts.embedding_UE.float().T).numpy()[:, self.distinct_T]

    @torch.inference_mode()
    def matching(self, image_P: Indices, text_P: Indices) -> Scores:
        """The matching head's log-odds for pairs of an image and a text, float32 [P].

        Each distinct pair goes through the model once. Images are remembered once, a block at a time; inside a block,
        pairs of similar text length go together, since padding is work.
        """
        key_P = image_P * len(self._distinct) + self.distinct_T[text_P]
        keys, inverse_P = np.unique(key_P, return_inverse=True)
        image, text = np.divmod(keys, len(self._distinct))
        scores = np.empty(len(keys), np.float32)
        step = self.batching.images
        cuts = np.searchsorted(image, np.arange(0, len(self.data.keys) + step, step))
        with progress("match pairs", len(keys)) as bar:
            for start, stop in itertools.pairwise(cuts):
                if start < stop:
                    scores[start:stop] = self._match_block(image[start:stop], text[start:stop], bar)
        return scores[inverse_P]

    def _match_block(self, image_P: Indices, text_P: Indices, bar: Progress) -> Scores:
        needed, local_P = np.unique(image_P, return_inverse=True)
        model, head = self.checkpoint.task.model, self.checkpoint.task.objectives["itm"]
        memory = model.remember(self._encode_images(needed))
        order_P = np.argsort(self.texts.lengths_U.numpy()[text_P], kind="stable")
        scores_P = np.empty(len(image_P), np.float32)
        for part in _parts(order_P, self.batching.pairs):
            text = self.texts.rows(torch.from_numpy(text_P[part]), self.device)
            fused = model.fuse(text, memory.rows(torch.from_numpy(local_P[part]).to(self.device)))
            scores_P[part] = head.score(fused).float().cpu().numpy()  # type: ignore[operator]
            bar.advance(len(part))
        return scores_P

    def _encode_images(self, images: Indices) -> Encoded:
        inputs = evaluation_images([self.data.source[int(image)] for image in images], self.checkpoint.config)
        return self.checkpoint.task.model.encode_image(inputs.to(self.device))

    def _encode_texts(self) -> Texts:
        """Encodes the distinct texts sorted by their number of words, a cheap stand-in for tokens."""
        order_U = np.argsort([len(text.split()) for text in self._distinct], kind="stable")
        tokens, lengths, embeddings = [], [], []
        with progress("encode texts", len(order_U)) as bar:
            for part in _parts(order_U, self.batching.texts):
                ids_BL, mask_BL = self.checkpoint.tokenizer.batch(
                    [self._distinct[i] for i in part], self.checkpoint.config.data.max_tokens
                )
                encoded = self.checkpoint.task.model.encode_text(TextInput(ids_BL, mask_BL).to(self.device))
                tokens.append(encoded.tokens_BTD.cpu()[mask_BL])
                lengths.append(mask_BL.sum(1))
                embeddings.append(encoded.embedding_BE.cpu())
                bar.advance(len(part))
        length_S = torch.cat(lengths)
        place_U = torch.from_numpy(np.argsort(order_U))  # of each text in the sorted order
        start_S = torch.cumsum(length_S, 0) - length_S
        return Texts(torch.cat(tokens), start_S[place_U], length_S[place_U], torch.cat(embeddings)[place_U])


def _parts(items: Indices, size: int) -> Iterator[Indices]:
    return (items[start : start + size] for start in range(0, len(items), size))
