"""ViLT against `transformers`: masked words with values and gradients, retrieval scores, images of several shapes."""

import pytest
import torch
from torch import nn
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForMaskedLM

from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.vilt import VILT
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import batch_of, copy, distance, shake, worst_gradient

VOCABULARY = 40
OPTIONS = {"hidden_size": 32, "max_position_embeddings": 12, "num_hidden_layers": 0, "layer_norm_eps": 1e-12}


def vilt_config() -> ViltConfig:
    return ViltConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        max_position_embeddings=12,
        max_image_length=-1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def task(objectives: dict[str, dict[str, str]]) -> Task:
    model = {
        "image_size": 32,
        "vision": {"patch": {"size": 8, "width": 32}},
        "text": {"options": OPTIONS | {"num_attention_heads": 4, "hidden_dropout_prob": 0.0}},
        "fusion": {"trunk": "joint", "depth": 2, "heads": 4, "hidden": 64, "norm": "pre", "eps": 1e-12, "types": True}
        | {"pooler": "tanh"},
        "embedding_dim": None,
    }
    config = parse_config(PretrainConfig, {"model": model, "objectives": objectives})
    return Task(config.model, config.objectives, VOCABULARY).eval()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(5, VOCABULARY, (3, 9), generator=generator)
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [7]])
    labels_BL = torch.where(mask_BL & (torch.rand(3, 9, generator=generator) < 0.4), ids_BL, IGNORE)
    pixels_BHWC = torch.randint(0, 256, (3, 48, 32, 3), generator=generator, dtype=torch.uint8)
    sizes_B2 = torch.tensor([[48, 16], [24, 32], [48, 32]])
    masked_ids_BL = torch.where(labels_BL != IGNORE, 4, ids_BL)
    fields = {"masked_ids_BL": masked_ids_BL, "masked_labels_BL": labels_BL, "image_sizes_B2": sizes_B2}
    return batch_of(pixels_BHWC, ids_BL, mask_BL, **fields)


def as_theirs(batch: Batch) -> dict[str, torch.Tensor]:
    """Pixels and masks as `transformers` takes them."""
    normal_BCHW = (batch.pixels_BHWC.float() / 255 - 0.5).permute(0, 3, 1, 2) / 0.5
    rows, columns = torch.arange(48)[:, None], torch.arange(32)
    inside = [(rows < height) & (columns < width) for height, width in batch.image_sizes_B2.tolist()]
    pixel_mask = torch.stack(inside)
    return {
        "input_ids": batch.masked_ids_BL,
        "attention_mask": batch.token_mask_BL.long(),
        "pixel_values": normal_BCHW * pixel_mask[:, None],
        "pixel_mask": pixel_mask.long(),
    }


def test_masked_words_values_and_gradients(batch):
    theirs, ours = shake(ViltForMaskedLM(vilt_config())), task({"mlm": {}})
    sources = copy(ours, VILT, theirs)
    expected = theirs(**as_theirs(batch))
    labels_BL = batch.masked_labels_BL
    expected_loss = nn.functional.cross_entropy(expected.logits.flatten(0, 1), labels_BL.flatten())
    loss = ours(batch)["loss"]
    expected_loss.backward()
    loss.backward()
    # Measured: 1.3e-7 and, of gradients, 4e-7.
    assert distance(loss, expected_loss) < 1e-5
    pooler = {name: source for name, source in sources.items() if "pooler" not in name}
    assert worst_gradient(ours, pooler) < 5e-5
    position = theirs.vilt.embeddings.position_embeddings.grad
    vision = ours.model.vision
    assert distance(vision.positions.grad, position[:, 1:].transpose(1, 2).reshape(vision.positions.shape)) < 5e-5
    assert distance(vision.class_token.grad, theirs.vilt.embeddings.cls_token.grad) < 5e-5


def test_retrieval_scores_and_gradients(batch):
    theirs, ours = shake(ViltForImageAndTextRetrieval(vilt_config())), task({"itm": {"negatives": "swap"}})
    sources = copy(ours, VILT, theirs)
    expected = theirs(**as_theirs(batch)).logits
    head = ours.objectives["itm"]
    found = head.score(Views(ours.model, batch, ()).fused_masked_text)[:, None]
    # Measured: 6e-8 and, of gradients, 5e-7.
    assert distance(found, expected) < 1e-5
    found.square().sum().backward()
    expected.square().sum().backward()
    assert worst_gradient(ours, sources) < 5e-5
    assert distance(head.head.weight.grad[1:], theirs.rank_output.weight.grad) < 5e-5
