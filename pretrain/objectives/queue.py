"""A queue of the newest features as a larger gallery (MoCo, arXiv:1911.05722; ALBEF, arXiv:2107.07651; BLIP).

Shapes: Q places, G new items of all ranks, E embedding size.
"""

import torch
from torch import Tensor, nn

EMPTY = -1


class FeatureQueue(nn.Module):
    """Ring buffers of image and text features with their groups; equal on all ranks, saved with the weights.

    Places that have not been filled yet carry the group `EMPTY`, so that no random features stand in for them.
    """

    image_QE: Tensor
    text_QE: Tensor
    group_Q: Tensor
    next: Tensor

    def __init__(self, places: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("image_QE", torch.zeros(places, embedding_dim))
        self.register_buffer("text_QE", torch.zeros(places, embedding_dim))
        self.register_buffer("group_Q", torch.full((places,), EMPTY))
        self.register_buffer("next", torch.zeros(1, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.group_Q)

    @torch.no_grad()
    def push(self, image_GE: Tensor, text_GE: Tensor, group_G: Tensor) -> None:
        """Overwrites the oldest places with the gathered items, which every rank passes in the same order."""
        newest = slice(-len(self), None)  # of a batch larger than the queue
        image_GE, text_GE, group_G = image_GE[newest], text_GE[newest], group_G[newest]
        places_G = (self.next + torch.arange(len(group_G), device=group_G.device)) % len(self)
        self.image_QE[places_G] = image_GE.to(self.image_QE.dtype)
        self.text_QE[places_G] = text_GE.to(self.text_QE.dtype)
        self.group_Q[places_G] = group_G
        self.next.copy_((self.next + len(group_G)) % len(self))
