"""Folders of transformers' fused models: what their classes compute, the imported checkpoint computes."""

import json

import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    LxmertConfig,
    LxmertForPreTraining,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForMaskedLM,
    VisualBertConfig,
    VisualBertForPreTraining,
)

from pretrain.checkpoint import load_checkpoint
from pretrain.models.interface import ImageInput, TextInput
from shards.errors import UserError
from tests.parity.weights import distance, shake
from tests.pretrain.convert.folders import VOCABULARY, bring, noise, save_tokenizer, texts

CLOSE = 1e-5  # Measured: at most 1.1e-6.
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 12}
LAYERS = {"num_hidden_layers": 2}
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def imported(theirs, folder, allow=(), pixels=None):
    save_tokenizer(folder / "published")
    if pixels:
        (folder / "published/preprocessor_config.json").write_text(json.dumps(pixels))
    theirs.save_pretrained(folder / "published")
    bring(folder / "published", folder / "ours", allow=allow)
    return load_checkpoint(folder / "ours")


def fused(checkpoint, image):
    model = checkpoint.task.model
    text = model.encode_text(TextInput(*texts(checkpoint)))
    return model.fuse(text, model.remember(model.encode_image(image)))


def words_in(checkpoint):
    ids_BL, mask_BL = texts(checkpoint)
    return {"input_ids": ids_BL, "attention_mask": mask_BL.long()}


def regions():
    """Features, boxes and mask of three images with 5, 2 and 4 regions."""
    generator = torch.Generator().manual_seed(2)
    there_BK = torch.arange(5) < torch.tensor([[5], [2], [4]])
    return torch.randn(3, 5, 10, generator=generator), torch.rand(3, 5, 4, generator=generator), there_BK


def word_logits(checkpoint, found):
    head = checkpoint.task.objectives["mlm"]
    return head.logits(found.text_BLD, checkpoint.task.model.word_embedding_VD)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "mean"), [(ViltForMaskedLM, None), (ViltForImageAndTextRetrieval, [0.4, 0.5, 0.6])])
def test_vilt(tmp_path, kind, mean):
    theirs = shake(kind(ViltConfig(vocab_size=VOCABULARY, image_size=32, patch_size=8, **LAYERS, **SHAPE)))
    ours = imported(theirs, tmp_path, pixels={"image_mean": mean, "image_std": [0.5, 0.6, 0.5]} if mean else None)
    mean, std = torch.tensor(mean or [0.5] * 3), torch.tensor([0.5, 0.6, 0.5] if mean else [0.5] * 3)
    normal_BCHW = ((noise().float() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = theirs(**words_in(ours), pixel_values=normal_BCHW).logits
    found = fused(ours, ImageInput(noise()))
    if kind is ViltForMaskedLM:
        mask_BL = texts(ours)[1]
        assert distance(word_logits(ours, found)[mask_BL], expected[:, : mask_BL.shape[1]][mask_BL]) < CLOSE
    else:
        assert distance(ours.task.objectives["itm"].score(found)[:, None], expected) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_blip_with_its_own_pixels(tmp_path, eps):
    shape = SHAPE | LAYERS
    text = shape | {"vocab_size": VOCABULARY, "encoder_hidden_size": 32, "bos_token_id": 38, "is_decoder": True}
    vision = shape | {"image_size": 32, "patch_size": 8, "layer_norm_eps": eps}
    theirs = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16))
    ours = imported(shake(theirs), tmp_path)
    normal_BCHW = ((noise().float() / 255 - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)
    inputs = words_in(ours) | {"pixel_values": normal_BCHW}
    model = ours.task.model
    image_BE = model.encode_image(ImageInput(noise())).embedding_BE
    text_BE = model.encode_text(TextInput(*texts(ours))).embedding_BE
    assert distance(image_BE @ text_BE.T, theirs(**inputs, use_itm_head=False).itm_score) < CLOSE
    logits = ours.task.objectives["itm"].head(fused(ours, ImageInput(noise())).pooled_BD)
    assert distance(logits, theirs(**inputs, use_itm_head=True).itm_score) < CLOSE


@torch.no_grad()
def test_lxmert_but_for_its_heads_for_objects_and_answers(tmp_path):
    layers = {"l_layers": 2, "r_layers": 1, "x_layers": 2}
    theirs = shake(LxmertForPreTraining(LxmertConfig(vocab_size=VOCABULARY, visual_feat_dim=10, **layers, **SHAPE)))
    with pytest.raises(
        UserError, match=r"tensors have no place \(answer_head\.logit_fc\.0\.bias, .*, \.\.\.\); `allow`"
    ):
        imported(theirs, tmp_path)
    ours = imported(theirs, tmp_path, ("answer_head.*", "obj_predict_head.*"))
    features_BKF, boxes_BK4, there_BK = regions()
    seen = {"visual_feats": features_BKF, "visual_pos": boxes_BK4, "visual_attention_mask": there_BK.long()}
    expected = theirs(**words_in(ours), **seen)
    found = fused(ours, ImageInput(None, features_BKF, boxes_BK4, there_BK))
    mask_BL = texts(ours)[1]
    assert distance(word_logits(ours, found)[mask_BL], expected.prediction_logits[mask_BL]) < CLOSE
    matched = ours.task.objectives["itm"].head(found.pooled_BD)
    assert distance(matched, expected.cross_relationship_score) < CLOSE


@torch.no_grad()
def test_visual_bert(tmp_path):
    config = VisualBertConfig(vocab_size=VOCABULARY, visual_embedding_dim=10, **LAYERS, **SHAPE)
    theirs = shake(VisualBertForPreTraining(config))
    ours = imported(theirs, tmp_path)
    features_BKF, boxes_BK4, there_BK = regions()
    expected = theirs(**words_in(ours), visual_embeds=features_BKF, visual_attention_mask=there_BK.long())
    found = fused(ours, ImageInput(None, features_BKF, boxes_BK4, there_BK))
    mask_BL = texts(ours)[1]
    logits_BLV = expected.prediction_logits[:, : mask_BL.shape[1]]
    matched = ours.task.objectives["pollution"].head(found.pooled_BD)
    assert distance(matched, expected.seq_relationship_logits) < CLOSE
    assert distance(word_logits(ours, found)[mask_BL], logits_BLV[mask_BL]) < CLOSE
