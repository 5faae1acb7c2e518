"""Files of the authors' own code: METER, ViLT, BLIP, OSCAR and VinVL by the names that their modules give, against
libraries and equations that know nothing of ours."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    RobertaConfig,
    RobertaModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForMaskedLM,
)

from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.models.convert.formats import AUTHORS
from pretrain.models.convert.importing import Request, import_checkpoint
from pretrain.models.convert.pixels import CLIP_MEAN, CLIP_STD
from pretrain.models.interface import ImageInput, TextInput
from pretrain.settings import dump_config, load_config
from shards.errors import UserError
from tests.parity.weights import distance, shake
from tests.pretrain.convert.folders import VOCABULARY, noise, save_tokenizer, texts
from tests.pretrain.convert.slow_bert import HEADS, WIDTH, Draw, attended, bert_layer, dense, normed

CLOSE = 1e-5  # Measured: at most 1.4e-6.
BERT = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}


def brought(folder, kind, tensors, changes, allow=()):
    """The imported checkpoint; the file is what a Lightning script saves."""
    torch.save({"epoch": 9, "global_step": 100, "state_dict": tensors}, folder / f"{kind}.ckpt")
    save_tokenizer(folder)
    config = load_config(PretrainConfig, f"configs/systems/{kind}.yaml", [f"{k}={v}" for k, v in changes.items()])
    (folder / f"{kind}.yaml").write_text(dump_config(config))
    request = Request(folder / f"{kind}.ckpt", kind, allow, folder, folder / f"{kind}.yaml")
    import_checkpoint(request, folder / "ours")
    return load_checkpoint(folder / "ours")


def fused(checkpoint, image):
    model = checkpoint.task.model
    return model.fuse(model.encode_text(TextInput(*texts(checkpoint))), model.remember(model.encode_image(image)))


def word_head(draw, head, tied=None):
    """BERT's head for words, its matrix its own unless `tied`."""
    made = draw.linear(f"{head}transform.dense", WIDTH) | draw.norm(f"{head}transform.LayerNorm")
    matrix = draw.normal(VOCABULARY, WIDTH) if tied is None else tied
    return made | {f"{head}decoder.weight": matrix, f"{head}bias": draw.normal(VOCABULARY)}


def words_of(given, head, x):
    inside = normed(given, f"{head}transform.LayerNorm", F.gelu(dense(given, f"{head}transform.dense", x)))
    return F.linear(inside, given[f"{head}decoder.weight"], given[f"{head}bias"])


def found_words(checkpoint, text):
    return checkpoint.task.objectives["mlm"].logits(text, checkpoint.task.model.word_embedding_VD)


def clip_image():
    """Three layers; METER keeps all but the last of CLIP's."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "head_width": 8, "layers": 3, "width": 24}
    text = {"context_length": 12, "vocab_size": VOCABULARY, "heads": 4, "layers": 1, "width": 24}
    return shake(open_clip.CLIP(16, vision, text, quick_gelu=True))


def meter_file(roberta):
    draw, clip = Draw(), clip_image().state_dict()
    made = {f"text_transformer.{name}": value for name, value in roberta.state_dict().items()}
    kept = [name for name in clip if name.startswith("visual.") and ".resblocks.2." not in name and name[7:] != "proj"]
    made |= {f"vit_model.{name}": clip[name] for name in (*kept, "positional_embedding", "ln_final.weight")}
    made |= draw.linear("cross_modal_text_transform", WIDTH) | draw.linear("cross_modal_image_transform", WIDTH, 24)
    made |= {"token_type_embeddings.weight": draw.normal(2, WIDTH)} | draw.linear("itm_score.fc", 2, 2 * WIDTH)
    for side in ("text", "image"):
        for n in range(2):
            made |= draw.layer(f"cross_modal_{side}_layers.{n}", image_width=WIDTH)
        made |= draw.linear(f"cross_modal_{side}_pooler.dense", WIDTH)
    return made | word_head(draw, "mlm_score.")


def cross_layer(given, name, x, mask, other, other_mask):
    x = attended(given, f"{name}.attention", x, x, mask)
    x = attended(given, f"{name}.crossattention", x, other, other_mask)
    inside = F.gelu(dense(given, f"{name}.intermediate.dense", x))
    return normed(given, f"{name}.output.LayerNorm", x + dense(given, f"{name}.output.dense", inside))


METER = {
    "model.image_size": 32,
    "model.vision.options": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "model.vision.width": WIDTH,
    "model.text.width": WIDTH,
    "model.text.options": BERT
    | {"num_hidden_layers": 2, "max_position_embeddings": 14, "pad_token_id": 1}
    | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "model.fusion.depth": 2,
    "model.fusion.heads": HEADS,
}


@torch.no_grad()
def test_meter(tmp_path):
    more = {"vocab_size": VOCABULARY, "max_position_embeddings": 14, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    roberta = shake(RobertaModel(RobertaConfig(num_hidden_layers=2, **BERT, **more)))
    given = meter_file(roberta)
    ours = brought(tmp_path, "meter", given, METER)
    ids_BL, mask_BL = texts(ours)
    vision = ours.task.model.vision
    clip = clip_image().visual
    y = clip._embeds(((noise().float() - vision.mean) / vision.std).permute(0, 3, 1, 2))
    for block in clip.transformer.resblocks[:2]:
        y = block(y)
    y = dense(given, "cross_modal_image_transform", clip.ln_post(y)) + given["token_type_embeddings.weight"][1]
    x = roberta(ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    x = dense(given, "cross_modal_text_transform", x) + given["token_type_embeddings.weight"][0]
    there = torch.ones(y.shape[:2], dtype=torch.bool)
    for n in range(2):
        x, y = (
            cross_layer(given, f"cross_modal_text_layers.{n}", x, mask_BL, y, there),
            cross_layer(given, f"cross_modal_image_layers.{n}", y, there, x, mask_BL),
        )
    pooled = [
        dense(given, f"cross_modal_{side}_pooler.dense", z[:, 0]).tanh() for side, z in (("text", x), ("image", y))
    ]
    found = fused(ours, ImageInput(noise()))
    assert distance(found.text_BLD[mask_BL], x[mask_BL]) < CLOSE
    assert distance(found.image_BND, y) < CLOSE
    matched = ours.task.objectives["itm"].head(found.pooled_BD)
    assert distance(matched, dense(given, "itm_score.fc", torch.cat(pooled, 1))) < CLOSE
    said = words_of(given, "mlm_score.", x[mask_BL])
    assert distance(found_words(ours, found.text_BLD[mask_BL]), said) < CLOSE


VILT = {
    "model.image_size": 32,
    "model.vision.patch": {"size": 8, "width": WIDTH},
    "model.text.options": {"hidden_size": WIDTH, "num_hidden_layers": 0, "num_attention_heads": HEADS}
    | {"max_position_embeddings": 12},
    "model.fusion.depth": 2,
    "model.fusion.heads": HEADS,
    "model.fusion.eps": 1e-12,  # as transformers has it; 1e-6 in their code
}


def vilt_file(theirs):
    """Transformers' tensors by their authors' names."""
    inner = {"attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    inner |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    outer = {
        "vilt.embeddings.text_embeddings": "text_embeddings",
        "vilt.embeddings.token_type_embeddings": "token_type_embeddings",
        "vilt.embeddings.patch_embeddings.projection": "transformer.patch_embed.proj",
        "vilt.layernorm": "transformer.norm",
        "vilt.pooler": "pooler",
        "mlm_score": "mlm_score",
        "rank_output": "rank_output",
    }
    given = theirs.state_dict()
    made = {
        f"transformer.{name}": given[f"vilt.embeddings.{other}"]
        for name, other in (("cls_token", "cls_token"), ("pos_embed", "position_embeddings"))
    }
    for name, value in given.items():
        made |= {name.replace(a, b, 1): value for a, b in outer.items() if name.startswith(f"{a}.")}
    for n in range(2):
        before, after = f"vilt.encoder.layer.{n}.", f"transformer.blocks.{n}."
        for kind in ("weight", "bias"):
            made |= {f"{after}{b}.{kind}": given[f"{before}{a}.{kind}"] for a, b in inner.items()}
            parts = [given[f"{before}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            made[f"{after}attn.qkv.{kind}"] = torch.cat(parts)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", [ViltForMaskedLM, ViltForImageAndTextRetrieval])
def test_vilt(tmp_path, kind):
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=VOCABULARY, image_size=32, patch_size=8, num_hidden_layers=2, max_position_embeddings=12, **BERT
    )
    theirs = shake(kind(config))
    given = vilt_file(theirs)
    words = kind is ViltForMaskedLM
    heads = {"objectives.itm": "null"} if words else {"objectives.mlm": "null"}
    if words:
        with pytest.raises(UserError, match=r"1 are missing \(objectives\.mlm\.decoder\.weight\)"):
            brought(tmp_path, "vilt", {n: v for n, v in given.items() if "decoder.w" not in n}, VILT | heads)
    ours = brought(tmp_path, "vilt", given, VILT | heads)
    ids_BL, mask_BL = texts(ours)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
    expected = theirs(**inputs, pixel_values=(noise().float() / 127.5 - 1).permute(0, 3, 1, 2)).logits
    found = fused(ours, ImageInput(noise()))
    if words:
        assert distance(found_words(ours, found.text_BLD)[mask_BL], expected[:, : ids_BL.shape[1]][mask_BL]) < CLOSE
    else:
        assert distance(ours.task.objectives["itm"].score(found)[:, None], expected) < CLOSE


def test_a_matrix_of_words_that_is_not_tied_is_not_dropped(tmp_path):
    draw = Draw()
    given = oscar_file(draw, 2, norm=False) | {"cls.predictions.decoder.weight": draw.normal(VOCABULARY, WIDTH)}
    with pytest.raises(UserError, match=r"`cls\.predictions\.decoder\.weight` is a matrix of its own, so `objectives"):
        brought(tmp_path, "oscar", given, OSCAR)
    ours = brought(tmp_path, "oscar", given, OSCAR | {"objectives.mlm.tied": "false"})
    assert torch.equal(ours.task.objectives["mlm"].decoder.weight, given["cls.predictions.decoder.weight"])


OSCAR = {
    "model.vision.region.features": 10,
    "model.vision.region.width": WIDTH,
    "model.text.options": BERT | {"num_hidden_layers": 0, "max_position_embeddings": 12},
    "model.fusion.depth": 2,
    "model.fusion.heads": HEADS,
}


def oscar_file(draw, classes, norm):
    words = "bert.embeddings."
    made = draw.linear("bert.img_embedding", WIDTH, 16) | draw.norm(f"{words}LayerNorm")
    made |= draw.norm("bert.LayerNorm") if norm else {}
    for kind, rows in {"word": VOCABULARY, "position": 12, "token_type": 2}.items():
        made[f"{words}{kind}_embeddings.weight"] = draw.normal(rows, WIDTH)
    for n in range(2):
        made |= draw.layer(f"bert.encoder.layer.{n}")
    made |= draw.linear("bert.pooler.dense", WIDTH) | draw.linear("cls.seq_relationship", classes)
    return made | word_head(draw, "cls.predictions.", tied=made[f"{words}word_embeddings.weight"])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "classes"), [("oscar", 2), ("vinvl", 3)])
def test_oscar_and_vinvl(tmp_path, kind, classes):
    torch.manual_seed(0)
    draw = Draw()
    given = oscar_file(draw, classes, norm=kind == "vinvl")
    ours = brought(tmp_path, kind, given, OSCAR)
    features_BKF, low_BK2, size_BK2 = draw.normal(3, 5, 10), torch.rand(3, 5, 2) / 2, torch.rand(3, 5, 2) / 2
    there_BK = torch.arange(5) < torch.tensor([[5], [2], [4]])
    boxes_BK4 = torch.cat([low_BK2, low_BK2 + size_BK2], -1)
    ids_BL, mask_BL = texts(ours)
    segments_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL) // 3 % 2
    tables = [given[f"bert.embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")]
    x = tables[0][ids_BL] + tables[1][: ids_BL.shape[1]] + tables[2][segments_BL]
    y = dense(given, "bert.img_embedding", torch.cat([features_BKF, boxes_BK4, size_BK2], -1))
    x = torch.cat(
        [normed(given, "bert.embeddings.LayerNorm", x), normed(given, "bert.LayerNorm", y) if kind == "vinvl" else y], 1
    )
    for n in range(2):
        x = bert_layer(given, f"bert.encoder.layer.{n}", x, torch.cat([mask_BL, there_BK], 1))
    pooled = dense(given, "bert.pooler.dense", x[:, 0]).tanh()
    model = ours.task.model
    image = model.encode_image(ImageInput(None, features_BKF, boxes_BK4, there_BK))
    found = model.fuse(model.encode_text(TextInput(ids_BL, mask_BL, segments_BL)), model.remember(image))
    text = x[:, : ids_BL.shape[1]][mask_BL]
    assert distance(found.text_BLD[mask_BL], text) < CLOSE
    assert distance(found_words(ours, found.text_BLD[mask_BL]), words_of(given, "cls.predictions.", text)) < CLOSE
    order = [0, 1] if classes == 2 else [0, 2, 1]  # clean, wrong tags, wrong caption in theirs
    matched = ours.task.objectives["pollution"].head(found.pooled_BD)
    assert distance(matched, dense(given, "cls.seq_relationship", pooled)[:, order]) < CLOSE


BLIP = {
    "model.image_size": 32,
    "model.vision.options": {"patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS},
    "model.text.options": BERT | {"num_hidden_layers": 0, "max_position_embeddings": 12},
    "model.fusion.depth": 2,
    "model.fusion.heads": HEADS,
    "model.embedding_dim": 16,
    "objectives.lm": "null",
    "objectives.itc.queue": 8,
}


def blip_file(theirs):
    """Transformers' tensors by their authors' names, with slow copies and queues."""
    names = {
        "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
        "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
        "vision_model.embeddings.patch_embedding": "visual_encoder.patch_embed.proj",
        "vision_model.encoder.layers.": "visual_encoder.blocks.",
        "vision_model.post_layernorm": "visual_encoder.norm",
        ".layer_norm": ".norm",
        ".self_attn.projection": ".attn.proj",
        ".self_attn.": ".attn.",
    }
    made = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        made[name] = value
    slow = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    made |= {n.replace(".", "_m.", 1): v for n, v in made.items() if n.startswith(slow)}
    return made | {"temp": torch.tensor(0.06), "image_queue": torch.zeros(16, 8), "ptr_queue": torch.zeros(1)}


@torch.no_grad()
def test_blip(tmp_path):
    words = BERT | {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "max_position_embeddings": 12}
    text = words | {"encoder_hidden_size": WIDTH, "bos_token_id": 38, "sep_token_id": 3}
    vision = BERT | {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "layer_norm_eps": 1e-6}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    theirs = shake(BlipForImageTextRetrieval(config))
    given = blip_file(theirs)
    writer = {"text_decoder.bert.encoder.layer.0.attention.self.query.weight": torch.zeros(WIDTH, WIDTH)}
    with pytest.raises(UserError, match=r"1 tensors have no place \(text_decoder\.bert\..*`allow` by name"):
        brought(tmp_path, "blip", given | writer, BLIP)
    ours = brought(tmp_path, "blip", given | writer, BLIP, ("text_decoder.*",))
    ids_BL, mask_BL = texts(ours)
    mean, std = (torch.tensor(values) for values in (CLIP_MEAN, CLIP_STD))
    normal_BCHW = ((noise().float() / 255 - mean) / std).permute(0, 3, 1, 2)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long(), "pixel_values": normal_BCHW}
    model = ours.task.model
    image, said = model.encode_image(ImageInput(noise())), model.encode_text(TextInput(ids_BL, mask_BL))
    cosine = image.embedding_BE @ said.embedding_BE.T
    assert distance(cosine, theirs(**inputs, use_itm_head=False).itm_score) < CLOSE
    matched = ours.task.objectives["itm"].head(fused(ours, ImageInput(noise())).pooled_BD)
    assert distance(matched, theirs(**inputs, use_itm_head=True).itm_score) < CLOSE
    assert float(ours.task.objectives["itc"].temperature) == pytest.approx(0.06)
    assert torch.equal(ours.task.momentum.model.text_projection.weight, model.text_projection.weight)


class Surprise:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("kind", [*AUTHORS, "transformers", "open_clip"])
def test_a_pickle_that_holds_code_is_refused(tmp_path, capsys, kind):
    torch.save({"state_dict": {"temp": torch.ones(1)}, "callbacks": Surprise()}, tmp_path / "pytorch_model.bin")
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"does not load as plain tensors \(`weights_only`\)") as refused:
        import_checkpoint(Request(tmp_path / "pytorch_model.bin", kind, (), tmp_path), tmp_path / "ours")
    assert "\n" not in str(refused.value)
    assert "executed" not in capsys.readouterr().out
    assert not (tmp_path / "ours").exists()
