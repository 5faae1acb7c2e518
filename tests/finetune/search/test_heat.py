"""Word-patch maps against cosines taken one by one, and the words of a text."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.search.encoder import Encoder
from finetune.search.heat import grid_side, word_heat
from pretrain.data.tokenizer import Tokenizer
from shards.tokenizer import train_tokenizer
from tests.finetune.corpus import Corpus, checkpoint
from tests.pretrain.tiny import tiny_config

TEXT = "a  red kite"


@torch.inference_mode()
def test_cosines_one_by_one(searcher):
    encoder = searcher.encoder
    side = grid_side(encoder)
    assert side == 2, "32 pixels in patches of 16, [CLS] left out"
    image = searcher.encoded([3])
    found = word_heat(encoder, TEXT, image, side)
    assert [word.word for word in found] == ["a", "red", "kite"]
    tokens = encoder.texts([TEXT]).tokens_BTD[0]
    for place, word in enumerate(found, 1):
        for y in range(2):
            for x in range(2):
                patch = encoder.model.image_projection(image.tokens_BTD[0, 1 + 2 * y + x])
                cosine = F.cosine_similarity(encoder.model.text_projection(tokens[place]), patch, dim=0)
                assert word.heat[y][x] == pytest.approx(float(cosine), abs=1e-4)


def test_punctuation_is_a_word_only_where_there_is_no_other(searcher):
    image = searcher.encoded([3])
    of_words = word_heat(searcher.encoder, "a red, kite!", image, 2)
    assert [word.word for word in of_words] == ["a", "red", "kite"]
    assert [word.word for word in word_heat(searcher.encoder, "?!", image, 2)]


@pytest.mark.parametrize(
    ("vision", "side"),
    [
        ({"name": "resnet10t", "options": {"channels": [8, 8, 8, 16], "output_stride": 16}}, 2),
        ({"name": "mobilenetv3_small_050", "options": {}}, None),
    ],
)
def test_convolutional_grids(vision, side, tmp_path):
    """MobileNetV3 pools into another width, so its tokens are not in the space of its pooled vector."""
    model = tiny_config().model.model_dump()
    encoder = Encoder(checkpoint(tmp_path, model=model | {"vision": vision}))
    assert grid_side(encoder) == side
    if side:
        maps = word_heat(encoder, "a dog", encoder.images([Corpus(1)[0]]), side)
        assert np.array(maps[1].heat).shape == (2, 2)


def test_words_are_spelt_as_typed_and_cut_where_the_text_is(tmp_path):
    train_tokenizer(["a photograph of unbelievable kites"] * 3, 60).save(str(tmp_path / "tokenizer.json"))
    words = Tokenizer(tmp_path)
    text = "A photograph, of KITES"
    found = words.spelt(text, 40)
    assert [word for word, _ in found] == ["A", "photograph", ",", "of", "KITES"]
    places = [place for _, own in found for place in own]
    assert places == list(range(1, len(words.encode(text, 40).ids_L) - 1)), "every token but [CLS] and [SEP], in order"
    assert len(words.spelt("a of " * 50, 10)) == 8
    assert words.spelt("", 10) == []
