"""A training step of ALBEF's shape (contrast, matching with hard negatives, masked words; no momentum) against a
straightforward program that runs every pass: true pairs, false pairs, and masked texts from their first layer on, each
with padded texts and a word head over all tokens.

It is written with timm's vision transformer, transformers' BERT and scaled-dot-product attention, and starts from the
same weights. ALBEF pads texts to the batch's longest and cuts them at 25 tokens; the third arm pads to 25 throughout.

python -m benchmarks.model.albef [--size half]
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from benchmarks.model.inputs import BERT_WORDS, Captions, pixels
from benchmarks.model.steps import Arm, autocast, check, compare, parse
from pretrain.batch import Batch, Draw
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.vision import ImageEncoder
from pretrain.settings import parse_config
from pretrain.task import Task

SIZES = {
    "tiny": {"width": 64, "image": (16, 64, 2), "layers": 1, "pairs": 4},
    "half": {"width": 384, "image": (16, 224, 6), "layers": 3, "pairs": 12},
    "full": {"width": 768, "image": (16, 256, 12), "layers": 6, "pairs": 3},
}
"""Of the image tower patch, pixels and layers; layers of the text encoder, and as many of the trunk."""
LONGEST = 25


def settings(size: dict[str, Any], dropout: float) -> PretrainConfig:
    width, heads, (patch, side, depth) = size["width"], size["width"] // 64, size["image"]
    words = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    calm = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    vit = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    model = {
        "image_size": side,
        "vision": {"name": "deit_base_patch16_224", "options": vit},
        "text": {"options": words | calm | {"num_hidden_layers": size["layers"]}},
        "fusion": {"depth": size["layers"], "heads": heads, "dropout": dropout, "eps": 1e-12},
        "embedding_dim": 256,
    }
    objectives = {"itc": {}, "itm": {"negatives": "hard"}, "mlm": {}}
    return parse_config(PretrainConfig, {"model": model, "objectives": objectives})


class PlainAttention(nn.Module):
    """Every call makes queries, keys and values anew."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor, y_BSD: Tensor, mask_B11S: Tensor | None) -> Tensor:
        inputs = (self.query(x_BLD), self.key(y_BSD), self.value(y_BSD))
        q, k, v = (value.unflatten(-1, (self.heads, -1)).transpose(1, 2) for value in inputs)
        mixed = F.scaled_dot_product_attention(q, k, v, mask_B11S, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PlainLayer(nn.Module):
    """BERT's layer with a look at the image in its middle."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = (PlainAttention(width, heads, dropout) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, image_BND: Tensor, mask_B11L: Tensor) -> Tensor:
        x_BLD = self.norms[0](x_BLD + self.drop(self.self_attention(x_BLD, x_BLD, mask_B11L)))
        x_BLD = self.norms[1](x_BLD + self.drop(self.cross_attention(x_BLD, image_BND, None)))
        return self.norms[2](x_BLD + self.drop(self.feed_forward(x_BLD)))


class Plain(nn.Module):
    """The whole of it, pass after pass."""

    def __init__(self, size: dict[str, Any], dropout: float, config: PretrainConfig) -> None:
        super().__init__()
        width, heads = size["width"], size["width"] // 64
        self.vision = ImageEncoder(config.model.vision, config.model.image_size)
        options = dict(config.model.text.options)
        bert = BertConfig(vocab_size=BERT_WORDS, attn_implementation="sdpa", **options)
        self.text = nn.ModuleDict({"bert": BertModel(bert, add_pooling_layer=False)})
        self.layers = nn.ModuleList(PlainLayer(width, heads, dropout) for _ in range(size["layers"]))
        self.image_projection, self.text_projection = nn.Linear(width, 256), nn.Linear(width, 256)
        self.log_temperature = nn.Parameter(torch.tensor([0.07]).log())
        self.match = nn.Linear(width, 2)
        self.words = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, 1e-12))
        self.words_bias = nn.Parameter(torch.zeros(BERT_WORDS))

    def start_from(self, task: Task) -> dict[str, list[Tensor]]:
        """Copies the weights; returns by our name what has taken them."""
        known = {"fusion.blocks.": "layers.", "vision.": "vision.", "text.": "text."}
        places = {f"model.{ours}": plain for ours, plain in known.items()}
        places |= {f"model.{side}_projection.": f"{side}_projection." for side in ("image", "text")}
        places |= {"objectives.itc.log_temperature": "log_temperature", "objectives.itm.head.": "match."}
        places |= {"objectives.mlm.transform.": "words.", "objectives.mlm.bias": "words_bias"}
        own, sources = dict(self.named_parameters()), {}
        for name, value in task.named_parameters():
            [start] = [start for start in places if name.startswith(start)]
            sources[name] = [own[name.replace(start, places[start], 1)]]
            sources[name][0].data.copy_(value.data)
        assert len(sources) == len(own)
        return sources

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        ids_BL, mask_BL, image = inputs["ids"], inputs["mask"], inputs["image"]
        image_BND = self.vision.backbone.forward_features(image)
        text_BLD = self.text.bert(ids_BL, attention_mask=mask_BL).last_hidden_state
        image_BE = F.normalize(self.image_projection(image_BND[:, 0]), dim=-1)
        text_BE = F.normalize(self.text_projection(text_BLD[:, 0]), dim=-1)
        contrast, wrong_text, wrong_image = self.contrast(image_BE, text_BE, inputs["draws"])

        right_BLD = self.fuse(text_BLD, mask_BL, image_BND)
        both_texts = torch.cat([text_BLD[wrong_text], text_BLD])
        both_masks = torch.cat([mask_BL[wrong_text], mask_BL])
        wrong_BLD = self.fuse(both_texts, both_masks, torch.cat([image_BND, image_BND[wrong_image]]))
        logits_B2 = self.match(torch.cat([right_BLD[:, 0], wrong_BLD[:, 0]])).float()
        is_match = torch.arange(len(logits_B2), device=mask_BL.device) < len(ids_BL)
        matching = F.cross_entropy(logits_B2, is_match.long())

        masked_BLD = self.text.bert(inputs["masked"], attention_mask=mask_BL).last_hidden_state
        features_BLD = self.words(self.fuse(masked_BLD, mask_BL, image_BND))
        logits_BLV = F.linear(features_BLD, self.text.bert.embeddings.word_embeddings.weight, self.words_bias)
        words = F.cross_entropy(logits_BLV.flatten(0, 1).float(), inputs["labels"].flatten(), ignore_index=IGNORE)
        return contrast + matching + words

    def contrast(self, image_BE: Tensor, text_BE: Tensor, draws_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and for each image a wrong text and for each text a wrong image, likely where alike."""
        logits_BB = image_BE.float() @ text_BE.float().T / self.log_temperature.exp()
        here = torch.arange(len(logits_BB), device=logits_BB.device)
        loss = (F.cross_entropy(logits_BB, here) + F.cross_entropy(logits_BB.T, here)) / 2
        with torch.no_grad():
            chance = [logits.double().fill_diagonal_(-torch.inf).softmax(1) for logits in (logits_BB, logits_BB.T)]
            drawn = [(c.cumsum(1) <= d[:, None]).sum(1) for c, d in zip(chance, draws_BK.T, strict=True)]
        return loss, drawn[0], drawn[1]

    def fuse(self, text_BLD: Tensor, mask_BL: Tensor, image_BND: Tensor) -> Tensor:
        for layer in self.layers:
            text_BLD = layer(text_BLD, image_BND, mask_BL.bool()[:, None, None])
        return text_BLD


def as_plain(batch: Batch, vision: ImageEncoder, length: int) -> dict[str, Tensor]:
    missing = length - batch.token_ids_BL.shape[1]
    return {
        "ids": F.pad(batch.token_ids_BL, (0, missing)),
        "mask": F.pad(batch.token_mask_BL.long(), (0, missing)),
        "masked": F.pad(batch.masked_ids_BL, (0, missing)),
        "labels": F.pad(batch.masked_labels_BL, (0, missing), value=IGNORE),
        "image": ((batch.pixels_BHWC.float() - vision.mean) / vision.std).permute(0, 3, 1, 2).contiguous(),
        "draws": batch.draws_BK[:, [Draw.WRONG_TEXT, Draw.WRONG_IMAGE]],
    }


def main() -> None:
    arguments = parse(__doc__, SIZES)
    size, device = SIZES[arguments.size], arguments.device
    arguments.pairs = pairs = arguments.pairs or size["pairs"]
    side = size["image"][1]
    captions, config = Captions(arguments.annotations, "bert", LONGEST), settings(size, arguments.dropout)
    task, plain = Task(config.model, config.objectives, BERT_WORDS), Plain(size, arguments.dropout, config)
    sources = plain.start_from(task)
    task.to(device), plain.to(device)
    task.autocast = torch.bfloat16 if device != "cpu" else None
    seen = [{"pixels_BHWC": pixels(pairs, side, side, number)} for number in range(arguments.rounds + 1)]
    batches = [captions.batch(n, pairs, **fields).to(device) for n, fields in enumerate(seen)]

    def arm(length: int | None) -> Arm:
        inputs = [as_plain(batch, plain.vision, length or batch.token_ids_BL.shape[1]) for batch in batches]

        def loss(number: int) -> Tensor:
            with autocast(arguments):
                return plain(inputs[number])

        return Arm(f"every pass, texts padded to {length or 'the longest'}", [plain], loss)

    us, longest = Arm("duostream", [task], lambda number: task(batches[number])["loss"]), arm(None)
    check(us, longest, task, sources)
    patch, side, depth = size["image"]
    shape = (
        f"ALBEF, width {size['width']}, {depth} image layers at {side}/{patch}, {size['layers']} text, as many to fuse"
    )
    compare(arguments, [us, longest, arm(LONGEST)], captions, "transformers", shape)


if __name__ == "__main__":
    main()
