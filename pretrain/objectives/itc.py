"""Image-text contrast: which similarity, against which gallery, to which target. The losses are in `contrast`.

    pooled vectors: against the global batch (CLIP, ALIGN, SigLIP) or the momentum towers' batch and queue (ALBEF)
    all tokens (FILIP) or queries (BLIP-2): against the global batch

Shapes: B pairs on this rank, G columns of the gallery, N image and L text tokens, E embedding size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import gather
from pretrain.models.interface import Encoded, ModelShape
from pretrain.objectives.config import ITCConfig
from pretrain.objectives.contrast import (
    contrastive_loss,
    group_targets,
    scaled_similarity,
    sigmoid_contrast,
    soften,
    softmax_contrast,
)
from pretrain.objectives.late_interaction import query_maximum, token_maximum
from pretrain.objectives.negatives import gather_encoded
from pretrain.objectives.objective import Objective, present
from pretrain.objectives.queue import FeatureQueue
from pretrain.objectives.views import Views
from shards.errors import UserError


class Gallery(NamedTuple):
    """What the pairs of this rank are contrasted with: float [G, E] twice, int64 [G]."""

    image_GE: Tensor
    text_GE: Tensor
    group_G: Tensor


class ITC(Objective):
    """Owns the temperature, learned in log space, the bias of the sigmoid, and the queue."""

    def __init__(self, config: ITCConfig, shape: ModelShape) -> None:
        super().__init__()
        if shape.embedding_dim is None:
            raise UserError("`objectives.itc` compares in a shared space, so `model.embedding_dim` must not be null")
        self.config = config
        self.reads = ("text", "image", "phrase", "region") if config.regions else ("text", "image")
        # Shape [1]: DeepSpeed refuses parameters without dimensions.
        self.log_temperature = nn.Parameter(torch.tensor([config.temperature]).log())
        self.bias = nn.Parameter(torch.tensor([config.bias])) if config.loss == "sigmoid" else None
        self.follows = config.queue > 0 or config.targets == "distilled"
        self.queue = FeatureQueue(config.queue, shape.embedding_dim) if config.queue else None

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(*self.config.limits)

    def forward(self, views: Views) -> Tensor:
        loss, weight = self._whole(views), self.config.regions
        return loss + weight * self._of_regions(views) if weight else loss

    def _of_regions(self, views: Views) -> Tensor:
        group_B, smoothing = present(views.batch.phrase_group_B), self.config.label_smoothing
        region_BE, phrase_BE = views.region.embedding_BE, views.phrase.embedding_BE
        return contrastive_loss(region_BE, phrase_BE, group_B, self.temperature, label_smoothing=smoothing)

    def _whole(self, views: Views) -> Tensor:
        group_B = views.batch.group_B
        if self.config.similarity == "tokens":
            return self._both_ways(*self._token_logits(views), group_B)
        if self.config.similarity == "queries":
            return self._both_ways(*self._query_logits(views), group_B)
        if self.follows:
            return self._with_momentum(views)
        image_BE, text_BE = views.image.embedding_BE, views.text.embedding_BE
        if self.bias is not None:
            return sigmoid_contrast(image_BE, text_BE, group_B, self.temperature, self.bias)
        smoothing = self.config.label_smoothing
        return contrastive_loss(image_BE, text_BE, group_B, self.temperature, label_smoothing=smoothing)

    def _both_ways(self, image_to_text_BG: Tensor, text_to_image_BG: Tensor, group_B: Tensor) -> Tensor:
        smoothing, dtype = self.config.label_smoothing, image_to_text_BG.dtype
        target_BG = group_targets(group_B, gather(group_B), smoothing, dtype)
        return (softmax_contrast(image_to_text_BG, target_BG) + softmax_contrast(text_to_image_BG, target_BG)) / 2

    def _token_logits(self, views: Views) -> tuple[Tensor, Tensor]:
        image, text, model = views.image, views.text, views.model
        image_BNE = F.normalize(model.image_projection(image.tokens_BTD), dim=-1)
        text_BLE = F.normalize(model.text_projection(text.tokens_BTD), dim=-1)
        images, texts = (
            gather_encoded(Encoded(*one)) for one in ((image_BNE, image.mask_BT), (text_BLE, text.mask_BT))
        )
        image_to_text_BG = token_maximum(image_BNE, image.mask_BT, texts.tokens_BTD, texts.mask_BT)
        text_to_image_BG = token_maximum(text_BLE, text.mask_BT, images.tokens_BTD, images.mask_BT)
        return image_to_text_BG / self.temperature, text_to_image_BG / self.temperature

    def _query_logits(self, views: Views) -> tuple[Tensor, Tensor]:
        image, text_BE = views.image, views.text.embedding_BE
        queries_BNE = F.normalize(views.model.image_projection(image.tokens_BTD), dim=-1)
        every = gather_encoded(Encoded(queries_BNE, image.mask_BT))
        image_to_text_BG = query_maximum(queries_BNE, image.mask_BT, gather(text_BE))
        text_to_image_BG = query_maximum(every.tokens_BTD, every.mask_BT, text_BE).T
        return image_to_text_BG / self.temperature, text_to_image_BG / self.temperature

    def _with_momentum(self, views: Views) -> Tensor:
        teacher, temperature = views.followed, self.temperature
        with torch.no_grad():
            image_BE, text_BE = teacher.views.image.embedding_BE, teacher.views.text.embedding_BE
            newest = Gallery(*map(gather, (image_BE, text_BE, views.batch.group_B)))
            gallery = self._with_queue(newest)
            target_BG = group_targets(views.batch.group_B, gallery.group_G, self.config.label_smoothing, image_BE.dtype)
        loss = torch.zeros((), device=image_BE.device)
        for own_BE, own_teacher_BE, other_GE in (
            (views.image.embedding_BE, image_BE, gallery.text_GE),
            (views.text.embedding_BE, text_BE, gallery.image_GE),
        ):
            wanted_BG = target_BG
            if self.config.targets == "distilled":
                opinion_BG = scaled_similarity(own_teacher_BE, other_GE, gallery.group_G, temperature.detach())
                wanted_BG = soften(target_BG, opinion_BG, teacher.alpha)
            loss = loss + softmax_contrast(scaled_similarity(own_BE, other_GE, gallery.group_G, temperature), wanted_BG)
        if self.training and self.queue is not None:
            self.queue.push(*newest)
        return loss / 2

    def _with_queue(self, newest: Gallery) -> Gallery:
        queue = self.queue
        if queue is None:
            return newest
        older = (queue.image_QE, queue.text_QE, queue.group_Q)
        return Gallery(*(torch.cat([new, old.to(new.dtype)]) for new, old in zip(newest, older, strict=True)))
