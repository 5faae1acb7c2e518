"""Who sees whom: the attention policies of `pretrain.models.interface.Attention` as masks.

Shapes: B items, L text tokens, N image tokens, T = L + N tokens, text first.
"""

import torch
from torch import Tensor

from pretrain.models.interface import Attention
from pretrain.models.packing import Packing


def unless_all(mask_BS: Tensor) -> Tensor | None:
    """What queries may look at, bool [B, 1, 1, S]; None, which attention is fastest with, where that is everything."""
    return None if mask_BS.all() else mask_BS[:, None, None]  # host sync here


def keep_first(mask_BT: Tensor) -> Tensor:
    """With the first place of each item too."""
    first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
    return mask_BT | first_T


def text_mask(packing: Packing, causal: bool) -> Tensor | None:
    """bool [B, 1, 1 or L, L], True where a text token may look at another; None where all may look at all."""
    if not causal:
        return packing.keys_B11T
    length = packing.places
    return packing.mask_BT[:, None, None] & packing.mask_BT.new_ones(length, length).tril()


def joint_mask(text_BL: Tensor, image_BN: Tensor, attention: Attention, prefix_BL: Tensor | None = None) -> Tensor:
    """bool [B, 1, 1 or T, T], True where query may look at key; T counts the text, then the image.

    Args:
        text_BL, image_BN: bool, True where there is a token. What is not there is never looked at, bar by itself.
        prefix_BL: bool, read by `prefix` alone.
    """
    there_B1T = torch.cat([text_BL, image_BN], 1)[:, None, :]
    if attention == "bidirectional":
        return there_B1T[:, None]
    texts, images = text_BL.shape[1], image_BN.shape[1]
    place_T = torch.cat([torch.arange(texts) + images, torch.arange(images)]).to(text_BL.device)
    is_image_T = place_T < images
    earlier_TT = place_T[None, :] <= place_T[:, None]
    both_text_TT = ~is_image_T[None, :] & ~is_image_T[:, None]
    match attention:
        case "causal":
            sees_BTT = earlier_TT[None]
        case "block":
            sees_BTT = (is_image_T[None, :] == is_image_T[:, None])[None]
        case "seq2seq":
            sees_BTT = (is_image_T[None, :] | (both_text_TT & earlier_TT))[None]
        case "prefix":
            if prefix_BL is None:
                raise ValueError("`attention` (=prefix) needs a text with `prefix_BL`")
            given_BT = torch.cat([prefix_BL, torch.ones_like(image_BN)], 1)
            sees_BTT = given_BT[:, None, :] | (both_text_TT & earlier_TT)
    itself_TT = torch.eye(texts + images, dtype=torch.bool, device=text_BL.device)  # no query is left with nothing
    return ((sees_BTT & there_B1T) | itself_TT)[:, None]
