"""How far a predicted box is from the true one: L1 and generalised IoU (X-VLM, arXiv:2111.08276, section 3.2).

Shapes: R rows of this rank.
"""

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss

from pretrain.distributed import global_mean
from pretrain.precision import in_full_precision


@in_full_precision
def box_loss(predicted_R4: Tensor, target_R4: Tensor, valid_R: Tensor) -> Tensor:
    """The sum of both errors, averaged over the rows of all ranks that have a box.

    Args:
        predicted_R4: float, centre x, centre y, width, height as shares of the image.
        target_R4: float, left, top, right, bottom as shares of the image.
        valid_R: bool [R].
    """
    target_R4 = target_R4.where(valid_R[:, None], target_R4.new_tensor([0.0, 0.0, 1.0, 1.0]))
    distance_R = F.l1_loss(predicted_R4, box_convert(target_R4, "xyxy", "cxcywh"), reduction="none").sum(1)
    outside_R = generalized_box_iou_loss(box_convert(predicted_R4, "cxcywh", "xyxy"), target_R4)
    return global_mean(distance_R + outside_R, valid_R)
