"""The trunk `encoder_decoder`: an encoder reads the image and what is given of the text, a decoder writes the text.

SimVLM (arXiv:2108.10904). Shapes: B pairs, L text tokens, N image tokens, T = L + N, P text tokens that are there, Q
tokens that the encoder reads, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.models.blocks import CrossBlock, SelfBlock, initialize
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Attention, Encoded, Fused, Memory
from pretrain.models.masks import text_mask
from pretrain.models.packing import Packing
from pretrain.models.pooler import PairPooler
from shards.errors import UserError


class EncoderDecoder(nn.Module):
    """Both sides embedded -> the decoder's text tokens and the encoder's image tokens."""

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        if text_width != image_width:
            raise UserError(f"`model.vision` yields width {image_width}; this trunk needs the text's {text_width}")
        width, shape = text_width, config.block
        self.encoder = nn.ModuleList(SelfBlock(width, shape) for _ in range(config.depth))
        decoder_depth = config.decoder_depth or config.depth
        self.decoder: Sequence[CrossBlock] = nn.ModuleList(  # type: ignore[assignment]  # it forgets what it holds
            CrossBlock(width, width, shape) for _ in range(decoder_depth)
        )
        pre = config.norm == "pre"
        self.encoder_norm = nn.LayerNorm(width, config.eps) if pre else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width, config.eps) if pre else nn.Identity()
        self.pooler = PairPooler(config, text_width, image_width)
        initialize(self)

    def remember(self, image: Encoded) -> Memory:
        """The embedded image: the encoder reads the text beside it."""
        return Memory(image.mask_BT, image.tokens_BTD)

    def forward(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i with row i.

        Args:
            attention: `prefix`: the encoder reads the image and `text.prefix_BT`, the decoder writes the whole text
                from left to right. `seq2seq` and `causal`: the encoder reads the image alone. `bidirectional`: it reads
                all of the text too, for judging a pair.
        """
        given_BL = _given(text, attention)
        assert memory.tokens_BND is not None
        texts = text.tokens_BTD.shape[1]
        read, written = Packing.of(torch.cat([given_BL, memory.mask_BN], 1)), Packing.of(text.mask_BT)
        x_QD = read.pack(torch.cat([text.tokens_BTD, memory.tokens_BND], 1))
        for block in self.encoder:
            x_QD = block(x_QD, read, read.keys_B11T)
        x_QD = self.encoder_norm(x_QD)
        text_PD, mask_B1LL = written.pack(text.tokens_BTD), text_mask(written, causal=True)
        for block in self.decoder:
            keys_and_values = block.cross_attention.keys_and_values(x_QD, read)
            text_PD = block(text_PD, written, mask_B1LL, keys_and_values, read.keys_B11T)
        text_BLD, image_BND = written.pad(self.decoder_norm(text_PD)), read.pad(x_QD)[:, texts:]
        return Fused(text_BLD, image_BND, self.pooler(text_BLD, image_BND))


def _given(text: Encoded, attention: Attention) -> Tensor:
    """bool [B, L], the text that the encoder reads."""
    match attention:
        case "bidirectional":
            return text.mask_BT
        case "seq2seq" | "causal":
            return torch.zeros_like(text.mask_BT)
        case "prefix" if text.prefix_BT is not None:
            return text.prefix_BT & text.mask_BT
        case "prefix":
            raise ValueError("`attention` (=prefix) needs a text with `prefix_BL`")
        case _:
            raise ValueError(f"`attention` (={attention}) is not known to encoder_decoder")
