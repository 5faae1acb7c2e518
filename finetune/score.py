"""Scores of images with texts by a trained model: a dot product for all pairs, a matching head for chosen ones.

Identical texts are encoded once and share their scores bit for bit, so that they tie as they should: in a batch of
another length the same text differs in the last bits, which would break real ties at random.

Under a launcher every rank encodes and matches its share and all get all scores. What goes through the model together
depends on the data alone, never on the number of ranks, and nothing is padded: the scores are those of one process, bit
for bit where each rank has as many threads.

Shapes: I images, U distinct texts, T texts, P pairs, B of a batch, H heads, N image tokens, L text tokens, D width,
E embedding.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from finetune.late import block_similarity
from finetune.recall import Indices, Scores
from finetune.retrieval import Fold, RetrievalSet
from pretrain import distributed
from pretrain.checkpoint import Checkpoint
from pretrain.data.images import evaluation_images
from pretrain.data.regions import stack_rows
from pretrain.models.interface import Encoded, Fused, TextInput
from pretrain.objectives.config import SimilarityKind
from pretrain.objectives.itm import ITM
from pretrain.objectives.pollution import Pollution
from shards.console import progress
from shards.errors import Stopped

T = TypeVar("T")
Head = Callable[[Fused], Tensor]


@dataclass(frozen=True)
class Batching:
    """How much goes through the model together. Fusing holds the keys and values of `images` images at a time."""

    images: int = 64
    texts: int = 256
    pairs: int = 256


class Similarity(NamedTuple):
    """Every image with every text, float32 [I, T] twice: as images rank texts and as texts rank images.

    They are one array unless tokens are compared (FILIP), where each side averages over its own.
    """

    by_image_IT: Scores
    by_text_IT: Scores

    @classmethod
    def both(cls, scores_IT: Scores) -> "Similarity":
        """One score for both directions."""
        return cls(scores_IT, scores_IT)


@dataclass(frozen=True)
class Texts:
    """Encoded distinct texts without padding, on the CPU.

    Attributes:
        tokens_ND: float [sum of lengths, D].
        starts_U, lengths_U: int64 [U], where each text's tokens lie.
        shared_UE: float32 [U, E], None where the model has no shared space.
    """

    tokens_ND: Tensor
    starts_U: Tensor
    lengths_U: Tensor
    shared_UE: Tensor | None

    def rows(self, index_B: Tensor, device: torch.device) -> Encoded:
        """Those texts as a batch on `device`, padded to the longest of them."""
        lengths_B = self.lengths_U[index_B]
        place_L = torch.arange(int(lengths_B.max()))
        mask_BL = place_L < lengths_B[:, None]
        position_BL = torch.where(mask_BL, self.starts_U[index_B, None] + place_L, 0)
        tokens_BLD = self.tokens_ND[position_BL] * mask_BL[..., None]
        shared_BE = None if self.shared_UE is None else self.shared_UE[index_B].to(device)
        return Encoded(tokens_BLD.to(device), mask_BL.to(device), shared_BE)


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

    @cached_property
    def texts(self) -> Texts:
        """The distinct texts, encoded when first asked for."""
        with torch.inference_mode():
            return self._encode_texts()

    @cached_property
    def _image_IE(self) -> Tensor:
        with torch.inference_mode():
            return self._embed_images()

    @property
    def embeddings(self) -> tuple[Scores, Scores]:
        """What `similarity` multiplies where it is of one vector a side, float32 [I, E] and [T, E]."""
        return self._image_IE.numpy(), self._shared_UE.numpy()[self.distinct_T]

    @property
    def _shared_UE(self) -> Tensor:
        assert self.texts.shared_UE is not None, "the caller knows that the model has a shared space"
        return self.texts.shared_UE

    def similarity(self) -> Similarity:
        """Of every image with every text, as the contrast was trained: by one vector each, or by their tokens."""
        if self.kind == "pooled":
            return Similarity.both((self._image_IE @ self._shared_UE.T).numpy()[:, self.distinct_T])
        return Similarity(*self._late_similarity().numpy()[:, :, self.distinct_T])

    @property
    def kind(self) -> SimilarityKind:
        """What is compared: one vector a side (`pooled`), or tokens."""
        itc = self.checkpoint.config.objectives.itc
        return "pooled" if itc is None else itc.similarity

    @torch.no_grad()
    def _late_similarity(self) -> Tensor:
        """float32 [2, I, U], by image and by text."""
        images, texts = len(self.data.keys), len(self._distinct)
        found_2IU = torch.zeros(2, images, texts)
        with _progress("compare tokens", images * texts) as advance:
            for block in _own(list(_parts(np.arange(images), self.batching.images))):
                image = self._encode_images(block)
                for part in _parts(np.argsort(self._lengths_U, kind="stable"), self.batching.texts):
                    text = self.texts.rows(torch.from_numpy(part), self.device)
                    found_2IU[:, block[:, None], part] = block_similarity(
                        self.kind, self.checkpoint.task.model, image, text
                    )
                    advance(len(block) * len(part))
        return _summed(found_2IU)

    @torch.inference_mode()
    def every_pair(self, folds: Sequence[Fold]) -> tuple[Scores, Scores]:
        """The log-odds, and the logit of a match alone, of every image with every text of its fold, each float32
        [I, T]; NaN elsewhere.

        For models that have nothing else, and for protocols that want it: 5,000 x 25,010 pairs are days on one CPU.
        """
        scores_HIT = np.full((2, len(self.data.keys), len(self.data.texts)), np.nan, np.float32)
        galleries = [np.unique(self.distinct_T[fold.texts], return_inverse=True) for fold in folds]
        pairs = sum(
            len(self.data.keys[fold.images]) * len(own) for fold, (own, _) in zip(folds, galleries, strict=True)
        )
        with _progress("match every pair", pairs) as advance:
            for fold, (text_U, place_T) in zip(folds, galleries, strict=True):
                scores_HIU = self._whole_block(np.arange(fold.images.start, fold.images.stop), text_U, advance)
                scores_HIT[:, fold.images, fold.texts] = scores_HIU[:, :, place_T]
        return scores_HIT[0], scores_HIT[1]

    def _whole_block(self, image_I: Indices, text_U: Indices, advance: Callable[[int], None]) -> Scores:
        """Log-odds and logit of these images with these distinct texts, float32 [2, I, U]."""
        heads = (self._head.score, self._head.match_logit)
        scores_IUH = torch.zeros(len(image_I), len(text_U), 2)
        for block in _own(list(_parts(np.arange(len(image_I)), self.batching.images))):
            image_P, text_P = np.repeat(image_I[block], len(text_U)), np.tile(text_U, len(block))
            scores_PH = self._match_block(image_P, text_P, heads, advance)
            scores_IUH[block] = scores_PH.reshape(len(block), len(text_U), 2)
        return _summed(scores_IUH).numpy().transpose(2, 0, 1)

    @property
    def _head(self) -> ITM | Pollution:
        head = self.checkpoint.task.matcher
        assert head is not None, "the caller knows that the model can match"
        return head

    def matching(self, image_P: Indices, text_P: Indices) -> Scores:
        """The matching head's log-odds for pairs of an image and a text, float32 [P].

        Each distinct pair goes through the model once. Images are remembered once, a block at a time; inside a block,
        pairs of similar text length go together, since padding is work.

        Raises:
            Stopped: the ranks do not agree on the pairs.
        """
        return self._fused(image_P, text_P, self._head.score)

    def logits(self, image_P: Indices, text_P: Indices) -> Scores:
        """The logit of a match alone, float32 [P], by which ALBEF, BLIP and ViLT rank; else as `matching`."""
        return self._fused(image_P, text_P, self._head.match_logit)

    @torch.inference_mode()
    def _fused(self, image_P: Indices, text_P: Indices, head: Head) -> Scores:
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
                scores[start:stop] = self._match_block(image[start:stop], text[start:stop], (head,), advance)[:, 0]
        return _summed(scores).numpy()[inverse_P]

    def _match_block(
        self, image_P: Indices, text_P: Indices, heads: Sequence[Head], advance: Callable[[int], None]
    ) -> Tensor:
        """What each head H says of each pair, float32 [P, H]."""
        needed, local_P = np.unique(image_P, return_inverse=True)
        model = self.checkpoint.task.model
        memory = model.remember(self._encode_images(needed))
        order_P = np.argsort(self._lengths_U[text_P], kind="stable")
        scores_PH = torch.zeros(len(image_P), len(heads))
        for part in _parts(order_P, self.batching.pairs):
            text = self._pair_texts(image_P[part], text_P[part])
            fused = model.fuse(text, memory.rows(torch.from_numpy(local_P[part]).to(self.device)))
            scores_PH[part] = torch.stack([head(fused).float() for head in heads], 1).cpu()
            advance(len(part))
        return scores_PH

    @property
    def _lengths_U(self) -> Indices:
        """Of each distinct text, to bring similar ones together."""
        if self._tagged:
            return np.array([len(text.split()) for text in self._distinct], np.int64)
        return self.texts.lengths_U.numpy()

    @property
    def _tagged(self) -> bool:
        """Whether a text is read with the tags of the image that it meets, so that it differs from pair to pair."""
        return self.checkpoint.config.data.second == "tags"

    def _pair_texts(self, image_P: Indices, text_P: Indices) -> Encoded:
        if not self._tagged:
            return self.texts.rows(torch.from_numpy(text_P), self.device)
        tokenizer, most = self.checkpoint.tokenizer, self.checkpoint.config.data.max_tokens
        tags = {image: " ".join(self.data.source[int(image)].tags) for image in np.unique(image_P)}
        pairs = zip(image_P, text_P, strict=True)
        texts = [tokenizer.encode(self._distinct[text], most, tags[image]) for image, text in pairs]
        ids_BL, mask_BL = tokenizer.pad([text.ids_L for text in texts])
        segments_BL = torch.from_numpy(stack_rows([text.segments_L for text in texts]))
        return self.checkpoint.task.model.encode_text(TextInput(ids_BL, mask_BL, segments_BL).to(self.device))

    def _embed_images(self) -> Tensor:
        """float32 [I, E]."""
        blocks = list(_parts(np.arange(len(self.data.keys)), self.batching.images))
        embedding_IE = torch.zeros(len(self.data.keys), self._shared_UE.shape[1])
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
        shared_BE = None if encoded.shared_BE is None else encoded.shared_BE.float().cpu()
        return Encoded(encoded.tokens_BTD.cpu(), mask_BL, shared_BE)


def _gather_texts(encoded: list[tuple[Indices, Encoded]], order_U: Indices) -> Texts:
    """All ranks' texts in their own order, from each rank's parts of the sorted order S."""
    texts = len(order_U)
    width = distributed.max_over_ranks(max((part.tokens_BTD.shape[2] for _, part in encoded), default=0))
    size = distributed.max_over_ranks(
        max((part.shared_BE.shape[1] for _, part in encoded if part.shared_BE is not None), default=0)
    )
    length_S, shared_SE = torch.zeros(texts, dtype=torch.int64), torch.zeros(texts, size)
    for place, part in encoded:
        length_S[place] = part.mask_BT.sum(1)
        if part.shared_BE is not None:
            shared_SE[place] = part.shared_BE
    length_S, shared_SE = _summed(length_S), _summed(shared_SE)
    start_S = torch.cumsum(length_S, 0) - length_S
    tokens_ND = torch.zeros(int(length_S.sum()), width)
    for place, part in encoded:
        start = int(start_S[place[0]])
        flat = part.tokens_BTD[part.mask_BT]
        tokens_ND[start : start + len(flat)] = flat
    place_U = torch.from_numpy(np.argsort(order_U))
    return Texts(_summed(tokens_ND), start_S[place_U], length_S[place_U], shared_SE[place_U] if size else None)


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
