"""UNITER's own names, against a plain evaluation of such a file by the paper's equations."""

import torch
import torch.nn.functional as F

from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.models.convert.importing import Request, import_checkpoint
from pretrain.models.interface import ImageInput, TextInput
from pretrain.settings import dump_config, load_config
from tests.parity.weights import distance
from tests.pretrain.convert.folders import VOCABULARY, save_tokenizer, texts
from tests.pretrain.convert.slow_bert import HEADS, WIDTH, Draw, bert_layer, dense, normed

FEATURES, CLASSES, CLOSE = 10, 7, 1e-5  # Measured: at most 1e-6.


def authors_file(folder):
    """What their pretraining script saves, tiny."""
    draw, seen, words = Draw(), "uniter.img_embeddings.", "uniter.embeddings."
    made = draw.linear(f"{seen}img_linear", WIDTH, FEATURES) | draw.linear(f"{seen}pos_linear", WIDTH, 7)
    for name in ("img_layer_norm", "pos_layer_norm", "LayerNorm"):
        made |= draw.norm(f"{seen}{name}")
    made |= {f"{seen}mask_embedding.weight": draw.normal(2, FEATURES)} | draw.norm(f"{words}LayerNorm")
    for kind, rows in {"word": VOCABULARY, "position": 12, "token_type": 2}.items():
        made[f"{words}{kind}_embeddings.weight"] = draw.normal(rows, WIDTH)
    for n in range(2):
        made |= draw.layer(f"uniter.encoder.layer.{n}")
    made |= draw.linear("uniter.pooler.dense", WIDTH) | draw.linear("itm_output", 2)
    head = "cls.predictions."
    made |= draw.linear(f"{head}transform.dense", WIDTH) | draw.norm(f"{head}transform.LayerNorm")
    made |= {f"{head}bias": draw.normal(VOCABULARY)}
    made |= {f"{head}decoder.weight": made[f"{words}word_embeddings.weight"]}
    for name in ("feat_regress", "region_classifier"):
        made |= draw.linear(f"{name}.net.0", WIDTH) | draw.norm(f"{name}.net.2")
    made |= {"feat_regress.weight": made[f"{seen}img_linear.weight"], "feat_regress.bias": draw.normal(FEATURES)}
    made |= draw.linear("region_classifier.net.3", CLASSES)
    torch.save(made, folder / "uniter.pt")
    return made


def configuration(folder):
    words = {"hidden_size": WIDTH, "num_hidden_layers": 0, "num_attention_heads": HEADS, "max_position_embeddings": 12}
    changes = {
        "model.vision.region.features": FEATURES,
        "model.vision.region.width": WIDTH,
        "model.text.options": words,
        "model.fusion.depth": 2,
        "model.fusion.heads": HEADS,
        "objectives.mrc.classes": CLASSES,
        "data.regions.classes": CLASSES,
    }
    config = load_config(PretrainConfig, "configs/systems/uniter.yaml", [f"{k}={v}" for k, v in changes.items()])
    (folder / "uniter.yaml").write_text(dump_config(config))
    return folder / "uniter.yaml"


def embedded_regions(given, features_BKF, boxes_BK4, hidden_BK):
    seen = "uniter.img_embeddings."
    hidden = given[f"{seen}mask_embedding.weight"][1]
    features_BKF = torch.where(hidden_BK[..., None], hidden, features_BKF)
    size = boxes_BK4[..., 2:] - boxes_BK4[..., :2]
    place = torch.cat([boxes_BK4, size, size[..., :1] * size[..., 1:]], -1)
    parts = [
        normed(given, f"{seen}{kind}_layer_norm", dense(given, f"{seen}{kind}_linear", x))
        for kind, x in (("img", features_BKF), ("pos", place))
    ]
    return normed(given, f"{seen}LayerNorm", sum(parts) + given["uniter.embeddings.token_type_embeddings.weight"][1])


def through_head(given, name, x):
    return normed(given, f"{name}.net.2", F.gelu(dense(given, f"{name}.net.0", x)))


@torch.no_grad()
def test_both_modalities_and_every_head(tmp_path):
    given = authors_file(tmp_path)
    save_tokenizer(tmp_path)
    request = Request(tmp_path / "uniter.pt", "uniter", (), tmp_path, configuration(tmp_path))
    assert import_checkpoint(request, tmp_path / "ours").fresh == []
    ours = load_checkpoint(tmp_path / "ours")
    model, heads = ours.task.model, ours.task.objectives
    generator = torch.Generator().manual_seed(2)
    features_BKF, boxes_BK4 = torch.randn(3, 5, FEATURES, generator=generator), torch.rand(3, 5, 4, generator=generator)
    there_BK = torch.arange(5) < torch.tensor([[5], [2], [4]])
    hidden_BK = there_BK & (torch.arange(5) == 1)
    ids_BL, mask_BL = texts(ours)

    kinds = [given[f"uniter.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
    words = kinds[0][ids_BL] + kinds[1][: ids_BL.shape[1]] + kinds[2][0]
    words = normed(given, "uniter.embeddings.LayerNorm", words)
    x = torch.cat([words, embedded_regions(given, features_BKF, boxes_BK4, hidden_BK)], 1)
    for n in range(2):
        x = bert_layer(given, f"uniter.encoder.layer.{n}", x, torch.cat([mask_BL, there_BK], 1))
    text, image = x[:, : ids_BL.shape[1]][mask_BL], x[:, ids_BL.shape[1] :][there_BK]
    pooled = dense(given, "uniter.pooler.dense", x[:, 0]).tanh()

    seen = ImageInput(None, features_BKF, boxes_BK4, there_BK, hidden_BK)
    found = model.fuse(model.encode_text(TextInput(ids_BL, mask_BL)), model.remember(model.encode_image(seen)))
    assert distance(found.text_BLD[mask_BL], text) < CLOSE
    assert distance(found.image_BND[there_BK], image) < CLOSE
    assert distance(heads["itm"].head(found.pooled_BD), dense(given, "itm_output", pooled)) < CLOSE
    regressed = F.linear(
        through_head(given, "feat_regress", image), given["feat_regress.weight"].T, given["feat_regress.bias"]
    )
    classified = dense(given, "region_classifier.net.3", through_head(given, "region_classifier", image))
    for name, expected in (("mrf", regressed), ("mrc", classified)):
        head = heads[name]
        assert distance(head.output(head.transform(found.image_BND[there_BK])), expected) < CLOSE
    inside = F.gelu(dense(given, "cls.predictions.transform.dense", text))
    logits = F.linear(
        normed(given, "cls.predictions.transform.LayerNorm", inside), kinds[0], given["cls.predictions.bias"]
    )
    assert distance(heads["mlm"].logits(found.text_BLD[mask_BL], model.word_embedding_VD), logits) < CLOSE
