"""ALBEF's own names, against a plain evaluation of such a file by the paper's equations."""

import pytest
import timm
import torch
import torch.nn.functional as F

from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.models.convert.importing import Request, import_checkpoint
from pretrain.models.interface import ImageInput, TextInput
from pretrain.settings import dump_config, load_config
from tests.parity.weights import distance, shake
from tests.pretrain.convert.folders import VOCABULARY, noise, save_tokenizer, texts
from tests.pretrain.convert.slow_bert import HEADS, WIDTH, Draw, bert_layer, dense, normed

CLOSE = 1e-5  # Measured: at most 1e-6.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4}


def tower():
    """The same at each call."""
    torch.manual_seed(0)
    return shake(timm.create_model("deit_base_patch16_224", img_size=32, num_classes=0, **VIT))


def authors_file(folder):
    """What their pretraining script saves, tiny: weights, slow copies, queues, and the optimizer's state."""
    draw = Draw()
    bert = "text_encoder.bert."
    made = {f"visual_encoder.{name}": value for name, value in tower().state_dict().items()}
    sizes = {"word": VOCABULARY, "position": 12, "token_type": 2}
    for kind, rows in sizes.items():
        made[f"{bert}embeddings.{kind}_embeddings.weight"] = draw.normal(rows, WIDTH)
    made |= draw.norm(f"{bert}embeddings.LayerNorm") | {f"{bert}embeddings.position_ids": torch.arange(12)[None]}
    for n in range(3):
        made |= draw.layer(f"{bert}encoder.layer.{n}", image_width=None if n < 1 else 24)
    head = "text_encoder.cls.predictions."
    made |= draw.linear(f"{head}transform.dense", WIDTH) | draw.norm(f"{head}transform.LayerNorm")
    made |= {f"{head}bias": draw.normal(VOCABULARY)}
    made |= {
        f"{head}decoder.weight": made[f"{bert}embeddings.word_embeddings.weight"],
        f"{head}decoder.bias": made[f"{head}bias"],
    }
    made |= draw.linear("vision_proj", 16, 24) | draw.linear("text_proj", 16) | draw.linear("itm_head", 2)
    made |= {f"{n.split('.', 1)[0]}_m.{n.split('.', 1)[1]}": v for n, v in made.items() if not n.startswith("itm")}
    made |= {"temp": torch.tensor(0.06), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    made |= {f"{side}_queue": draw.normal(16, 8) for side in ("image", "text")}
    torch.save({"model": made, "optimizer": {"state": {}}, "epoch": 29, "config": {"temp": 0.07}}, folder / "ALBEF.pth")
    return made


def configuration(folder):
    words = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}
    changes = {
        "model.image_size": 32,
        "model.vision.options": VIT,
        "model.text.options": words | {"max_position_embeddings": 12},
        "model.fusion.depth": 2,
        "model.fusion.heads": HEADS,
        "model.embedding_dim": 16,
        "objectives.itc.queue": 8,
    }
    config = load_config(PretrainConfig, "configs/systems/albef.yaml", [f"{k}={v}" for k, v in changes.items()])
    (folder / "albef.yaml").write_text(dump_config(config))
    return folder / "albef.yaml"


@torch.no_grad()
def test_contrast_matching_and_words(tmp_path):
    given = authors_file(tmp_path)
    save_tokenizer(tmp_path)
    request = Request(tmp_path / "ALBEF.pth", "albef", (), tmp_path, configuration(tmp_path))
    import_checkpoint(request, tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    model, heads = ours.task.model, ours.task.objectives
    ids_BL, mask_BL = texts(ours)
    normal_BCHW = ((noise().float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    image_BND = tower().forward_features(normal_BCHW)
    bert = "text_encoder.bert."
    tables = [given[f"{bert}embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
    x = tables[0][ids_BL] + tables[1][: ids_BL.shape[1]] + tables[2][0]
    x = bert_layer(given, f"{bert}encoder.layer.0", normed(given, f"{bert}embeddings.LayerNorm", x), mask_BL)
    text_BE = F.normalize(dense(given, "text_proj", x[:, 0]), dim=-1)
    image_BE = F.normalize(dense(given, "vision_proj", image_BND[:, 0]), dim=-1)
    for n in (1, 2):
        x = bert_layer(given, f"{bert}encoder.layer.{n}", x, mask_BL, image_BND)

    image, text = model.encode_image(ImageInput(noise())), model.encode_text(TextInput(ids_BL, mask_BL))
    found = model.fuse(text, model.remember(image))
    assert distance(image.embedding_BE, image_BE) < CLOSE
    assert distance(text.embedding_BE, text_BE) < CLOSE
    assert distance(found.text_BLD[mask_BL], x[mask_BL]) < CLOSE
    assert distance(heads["itm"].head(found.pooled_BD), dense(given, "itm_head", x[:, 0])) < CLOSE
    head = "text_encoder.cls.predictions."
    inside = normed(given, f"{head}transform.LayerNorm", F.gelu(dense(given, f"{head}transform.dense", x[mask_BL])))
    logits = F.linear(inside, tables[0], given[f"{head}bias"])
    assert distance(heads["mlm"].logits(found.text_BLD[mask_BL], model.word_embedding_VD), logits) < CLOSE
    assert float(heads["itc"].temperature) == pytest.approx(0.06)
    slow = ours.task.momentum.model
    assert torch.equal(slow.text_projection.weight, model.text_projection.weight)
