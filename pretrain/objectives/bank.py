"""Contrast of images with all texts of the corpus, which a frozen text encoder has read once (LiT, arXiv:2111.07991).

    corpus -> pretrain.bank -> text encoder, once -> features of every text
    step: one text of each group -> text projection -> gallery for the images, and the other way round

A batch's contrast meets as many wrong texts as the batch holds; here each image meets every group of the corpus at the
price of one matrix product, and a step spends nothing on the text encoder. A part of the target may go to groups whose
texts are alike by themselves: the shared space then keeps more of what the text encoder knows, by which images of
things that training has never named find their texts.

Shapes: B pairs on this rank, W of all ranks, T texts, G groups, D width, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed
from pretrain.batch import Draw
from pretrain.distributed import gather
from pretrain.models.interface import ModelShape
from pretrain.objectives.config import BankConfig
from pretrain.objectives.contrast import soften, softmax_contrast
from pretrain.objectives.objective import Objective
from pretrain.objectives.views import Views
from pretrain.precision import full
from shards.errors import UserError


class Bank(Objective):
    """Owns the temperature and the features; `fill` comes before the first step. Checkpoints leave the features out."""

    reads = ("image",)
    features_TD: Tensor
    group_G: Tensor
    starts_G: Tensor
    counts_G: Tensor

    def __init__(self, config: BankConfig, shape: ModelShape) -> None:
        super().__init__()
        if shape.embedding_dim is None:
            raise UserError("`objectives.bank` compares in a shared space, so `model.embedding_dim` must not be null")
        self.config = config
        # Shape [1]: DeepSpeed refuses parameters without dimensions.
        self.log_temperature = nn.Parameter(torch.tensor([config.temperature]).log())
        for name in ("features_TD", "group_G", "starts_G", "counts_G"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(*self.config.limits)

    def fill(self, features_TD: Tensor, group_T: Tensor) -> None:
        """Takes the texts' features, float [T, D], and the groups that they belong to, int64 [T]."""
        order_T = group_T.argsort(stable=True)
        self.features_TD = full(features_TD[order_T])
        self.group_G, self.counts_G = group_T.unique(return_counts=True)
        self.starts_G = self.counts_G.cumsum(0) - self.counts_G

    def forward(self, views: Views) -> Tensor:
        image_BE, group_B = views.image.embedding_BE, views.batch.group_B
        feature_GD = self.features_TD[self._drawn(views.batch.draws_BK)]
        thinned_GD = F.dropout(feature_GD, self.config.dropout, self.training)
        text_GE = F.normalize(views.model.text_projection(thinned_GD), dim=-1)
        own_B = torch.searchsorted(self.group_G, group_B)
        assert torch.equal(self.group_G[own_B], group_B), "the bank was filled from another corpus"
        similarity_BG = full(image_BE) @ full(text_GE).T / self.temperature
        to_text = softmax_contrast(similarity_BG, self._targets(own_B, feature_GD))
        if not self.config.text_to_image:
            return to_text
        return to_text + self.config.text_to_image * self._to_image(image_BE, text_GE, gather(own_B))

    def _to_image(self, image_BE: Tensor, text_GE: Tensor, own_W: Tensor) -> Tensor:
        """Texts of the groups in the global batch over its images; each rank takes its share of the texts."""
        image_WE = gather(image_BE)
        present_P = own_W.unique()[distributed.rank() :: distributed.world()]
        same_PW = (present_P[:, None] == own_W).to(image_BE.dtype)
        logits_PW = full(text_GE[present_P]) @ full(image_WE).T / self.temperature
        return softmax_contrast(logits_PW, same_PW / same_PW.sum(1, keepdim=True))

    def _targets(self, own_B: Tensor, feature_GD: Tensor) -> Tensor:
        hard_BG = F.one_hot(own_B, len(self.group_G)).to(feature_GD.dtype)
        if not self.config.soft:
            return hard_BG
        alike_GD = F.normalize(feature_GD - feature_GD.mean(0), dim=-1)
        alike_BG = alike_GD[own_B] @ alike_GD.T / self.config.soft_temperature
        return soften(hard_BG, alike_BG, alike_BG.new_tensor([self.config.soft]))

    def _drawn(self, draws_BK: Tensor) -> Tensor:
        """One text of each group, the same on all ranks, decided by the first pair of the global batch: int64 [G]."""
        seed = int(gather(draws_BK)[0, Draw.BANK] * 2**62)
        generator = torch.Generator().manual_seed(seed)
        share_G = torch.rand(len(self.counts_G), generator=generator, dtype=torch.float64).to(self.counts_G.device)
        return self.starts_G + (share_G * self.counts_G).long()
