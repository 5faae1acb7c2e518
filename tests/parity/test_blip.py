"""BLIP against `transformers.BlipForImageTextRetrieval`: contrast, matching and their gradients."""

import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

from pretrain.config import PretrainConfig
from pretrain.models.convert.blip import BLIP
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY, EPS = 40, 1e-12
SHAPE = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def blip() -> BlipForImageTextRetrieval:
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0}
    words = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, "encoder_hidden_size": 32, "is_decoder": True}
    special = {"bos_token_id": 38, "sep_token_id": 3, "eos_token_id": 3}
    text = {**words, **special, **SHAPE, **calm}
    vision = {"image_size": 32, "patch_size": 8, **SHAPE, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    return shake(BlipForImageTextRetrieval(config))


def task() -> Task:
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    words = {"hidden_size": 32, "num_hidden_layers": 0, "max_position_embeddings": 12, "hidden_dropout_prob": 0.0}
    model = {
        "image_size": 32,
        "vision": {"name": "vit_base_patch16_224", "options": vit},
        "text": {"options": words | {"num_attention_heads": 4}},
        "fusion": {"shared_text": True, "depth": 2, "heads": 4, "eps": EPS},
        "embedding_dim": 16,
    }
    config = parse_config(PretrainConfig, {"model": model, "objectives": {"itc": {}, "itm": {}}})
    return Task(config.model, config.objectives, VOCABULARY).eval()


def test_contrast_matching_and_gradients():
    theirs, ours = blip(), task()
    sources = copy(ours, BLIP, theirs, {"objectives.itc.log_temperature": torch.tensor([0.07]).log()})
    generator = torch.Generator().manual_seed(1)
    pixels_BHWC = torch.randint(0, 256, (3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    ids_BL = torch.randint(5, 38, (3, 9), generator=generator)
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [7]])
    vision = ours.model.vision
    inputs = {
        "input_ids": ids_BL,
        "attention_mask": mask_BL.long(),
        "pixel_values": ((pixels_BHWC.float() - vision.mean) / vision.std).permute(0, 3, 1, 2),
    }
    views = Views(ours.model, batch_of(pixels_BHWC, ids_BL, mask_BL), ("text", "image", "fused_clean"))
    cosine = views.image.embedding_BE @ views.text.embedding_BE.T
    logits = ours.objectives["itm"].head(views.fused_clean.pooled_BD)
    expected_cosine, expected_logits = (theirs(**inputs, use_itm_head=itm).itm_score for itm in (False, True))
    # Measured: 3e-7, 7e-8 and, of gradients, 7e-7.
    assert distance(cosine, expected_cosine) < 1e-5
    assert distance(logits, expected_logits) < 1e-5
    (cosine.square().sum() + logits.square().sum()).backward()
    (expected_cosine.square().sum() + expected_logits.square().sum()).backward()
    assert worst_gradient(ours, sources) < 5e-5
