"""Published folders as libraries write them, tiny, with random weights; and what both sides compute."""

from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from pretrain.checkpoint import Checkpoint
from pretrain.models.convert.importing import Imported, Request, import_checkpoint
from tests.parity.weights import shake

VOCABULARY = 40
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
CLIP_SPECIAL = {"<|startoftext|>": 38, "<|endoftext|>": 39}


def save_tokenizer(folder: Path, first: str = "[CLS]", last: str = "[SEP]") -> None:
    """Words w5 to w37 between special tokens of BERT's or CLIP's names."""
    words = SPECIAL | {f"w{n}": n for n in range(5, 38)} | CLIP_SPECIAL
    if first not in SPECIAL:
        words = {f"w{n}": n for n in range(38)} | CLIP_SPECIAL
    backend = Backend(WordLevel(words, unk_token="[UNK]" if first in SPECIAL else "w1"))
    backend.pre_tokenizer = Whitespace()
    ends = [(name, words[name]) for name in (first, last)]
    backend.post_processor = TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))


def save_clip(folder: Path) -> CLIPModel:
    """A folder as `CLIPModel.save_pretrained` writes it, with CLIP's own text end."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, **ends, **shape}
    vision = {"image_size": 32, "patch_size": 8, **shape}
    model = shake(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    save_tokenizer(folder, "<|startoftext|>", "<|endoftext|>")
    model.save_pretrained(folder)
    return model


def bring(source: Path, out: Path, kind: str = "transformers", allow: tuple[str, ...] = ()) -> Imported:
    return import_checkpoint(Request(source, kind, allow), out)


def noise(size: int = 32, seed: int = 0) -> Tensor:
    """uint8 [3, size, size, 3]."""
    return torch.randint(0, 256, (3, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def texts(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Three texts of different lengths, int64 [3, L] and bool [3, L]."""
    return checkpoint.tokenizer.batch(["w5 w6 w7 w8 w9", "w10", "w11 w12"], 12)
