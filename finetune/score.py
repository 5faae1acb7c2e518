"""Scores of images with texts by a trained model: a dot product for all pairs, a matching head for chosen ones.

Identical texts are encoded once and share their scores bit for bit, so that they tie as they should: in a batch of
another length the same text differs in the last bits, which would break real ties at random.

Under a launcher every rank encodes and matches its share and all get all scores. What goes through the model together
depends on the data alone, never on the number of ranks, and nothing is padded: the scores are those of one process, bit
for bit where each rank has as many threads.

Shapes: I images, U distinct texts, T texts, P pairs, B of a batch, N image tokens, L text tokens, D width, E embedding.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from finetune.recall import Indices, Scores
from finetune.retrieval import RetrievalSet
from pretrain import distributed
from pretrain.checkpoint import Checkpoint
from pretrain.data.images import evaluation_images
from pretrain.models.interface import Encoded, Fused, TextInput
from shards.console import progress
from shards.errors import Stopped

T = TypeVar("T")


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
        self.image_IE = self._embed_images()
        return (self.image_IE @ self.texts.embedding_UE.T).numpy()[:, self.distinct_T]

    @property
    def embeddings(self) -> tuple[Scores, Scores]:
        """What `similarity` multiplied, float32 [I, E] and [T, E]."""
        return self.image_IE.numpy(), self.texts.embedding_UE.numpy()[self.distinct_T]

    def matching(self, image_P: Indices, text_P: Indices) -> Scores:
        """The matching head's log-odds for pairs of an image and a text, float32 [P].

        Each distinct pair goes through the model once. Images are remembered once, a block at a time; inside a block,
        pairs of similar text length go together, since padding is work.

        Raises:
            Stopped: the ranks do not agree on the pairs.
        """
        return self._fused(image_P, text_P, self.checkpoint.task.objectives["itm"].score)  # type: ignore[arg-type]

    def logits(self, image_P: Indices, text_P: Indices) -> Scores:
        """The logit of a match alone, float32 [P], by which ALBEF, BLIP and ViLT rank; else as `matching`."""
        return self._fused(image_P, text_P, self.checkpoint.task.objectives["itm"].match_logit)  # type: ignore[arg-type]

    @torch.inference_mode()
    def _fused(self, image_P: Indices, text_P: Indices, head: Callable[[Fused], Tensor]) -> Scores:
        key_P = image_P * len(self._distinct) + self.distinct_T[text_P]
        keys, inverse_P = np.unique(key_P, return_inverse=True)
        _agree(keys)
        image, text = np.divmod(keys, len(self._distinct))
        step = self.batching.images
        cuts = np.searchsorted(image, np.arange(0, len(self.data.keys) + step, step))
        blocks = [(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]
        scores = torch.zeros(len(keys))
        with _progress("match pairs", len(keys)) as advance:
            for start, stop in _own(blocks):
                scores[start:stop] = self._match_block(image[start:stop], text[start:stop], head, advance)
        return _summed(scores).numpy()[inverse_P]

    def _match_block(
        self, image_P: Indices, text_P: Indices, head: Callable[[Fused], Tensor], advance: Callable[[int], None]
    ) -> Tensor:
        needed, local_P = np.unique(image_P, return_inverse=True)
        model = self.checkpoint.task.model
        memory = model.remember(self._encode_images(needed))
        order_P = np.argsort(self.texts.lengths_U.numpy()[text_P], kind="stable")
        scores_P = torch.zeros(len(image_P))
        for part in _parts(order_P, self.batching.pairs):
            text = self.texts.rows(torch.from_numpy(text_P[part]), self.device)
            fused = model.fuse(text, memory.rows(torch.from_numpy(local_P[part]).to(self.device)))
            scores_P[part] = head(fused).float().cpu()
            advance(len(part))
        return scores_P

    def _embed_images(self) -> Tensor:
        """float32 [I, E]."""
        blocks = list(_parts(np.arange(len(self.data.keys)), self.batching.images))
        embedding_IE = torch.zeros(len(self.data.keys), self.texts.embedding_UE.shape[1])
        with _progress("encode images", len(self.data.keys)) as advance:
            for part in _own(blocks):
                embedding_IE[part] = self._encode_images(part).embedding_BE.float().cpu()
                advance(len(part))
        return _summed(embedding_IE)

    def _encode_images(self, images: Indices) -> Encoded:
        inputs = evaluation_images([self.data.source[int(image)] for image in images], self.checkpoint.config)
        return self.checkpoint.task.model.encode_image(inputs.to(self.device))

    def _encode_texts(self) -> Texts:
        """Encodes the distinct texts sorted by their number of words, a cheap stand-in for tokens."""
        order_U = np.argsort([len(text.split()) for text in self._distinct], kind="stable")
        parts = list(_parts(np.arange(len(order_U)), self.batching.texts))  # of the sorted order S
        encoded: list[tuple[Indices, Encoded]] = []
        with _progress("encode texts", len(order_U)) as advance:
            for part in _own(parts):
                encoded.append((part, self._encode_text([self._distinct[i] for i in order_U[part]])))
                advance(len(part))
        return _gather_texts(encoded, order_U)

    def _encode_text(self, texts: list[str]) -> Encoded:
        ids_BL, mask_BL = self.checkpoint.tokenizer.batch(texts, self.checkpoint.config.data.max_tokens)
        encoded = self.checkpoint.task.model.encode_text(TextInput(ids_BL, mask_BL).to(self.device))
        return Encoded(encoded.tokens_BTD.cpu(), mask_BL, encoded.embedding_BE.float().cpu())


def _gather_texts(encoded: list[tuple[Indices, Encoded]], order_U: Indices) -> Texts:
    """All ranks' texts in their own order, from each rank's parts of the sorted order S."""
    texts = len(order_U)
    widths = [(part.tokens_BTD.shape[2], part.embedding_BE.shape[1]) for _, part in encoded]
    width, size = (distributed.max_over_ranks(max((w[n] for w in widths), default=0)) for n in range(2))
    length_S, embedding_SE = torch.zeros(texts, dtype=torch.int64), torch.zeros(texts, size)
    for place, part in encoded:
        length_S[place], embedding_SE[place] = part.mask_BT.sum(1), part.embedding_BE
    length_S = _summed(length_S)
    start_S = torch.cumsum(length_S, 0) - length_S
    tokens_ND = torch.zeros(int(length_S.sum()), width, dtype=encoded[0][1].tokens_BTD.dtype if encoded else None)
    for place, part in encoded:
        start = int(start_S[place[0]])
        flat = part.tokens_BTD[part.mask_BT]
        tokens_ND[start : start + len(flat)] = flat
    place_U = torch.from_numpy(np.argsort(order_U))
    embedding_SE, tokens_ND = _summed(embedding_SE), _summed(tokens_ND)
    return Texts(tokens_ND, start_S[place_U], length_S[place_U], embedding_SE[place_U])


def _agree(keys: Indices) -> None:
    """Ranks choose the candidates each for itself; on machines that round alike they choose the same.

    Raises:
        Stopped: they did not.
    """
    mark = zlib.crc32(keys.tobytes())
    if distributed.max_over_ranks(mark) != -distributed.max_over_ranks(-mark):
        raise Stopped("the ranks chose different candidates: they run on machines that round differently")


def _summed(tensor: Tensor) -> Tensor:
    """The sum over ranks of tensors that are zero where another rank has the values: exact."""
    return distributed.sum_over_ranks(tensor.to(distributed.collective_device())).cpu()


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Counts this rank's share as the share of all; the first rank speaks."""
    if distributed.rank():
        yield lambda count: None
        return
    with progress(title, -(-total // distributed.world())) as bar:
        yield bar.advance


def _own(parts: list[T]) -> list[T]:
    """This rank's share of what goes through the model, whole parts in turn."""
    return parts[distributed.rank() :: distributed.world()]


def _parts(items: Indices, size: int) -> Iterator[Indices]:
    return (items[start : start + size] for start in range(0, len(items), size))
