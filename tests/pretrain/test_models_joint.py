"""The joint trunk against loops over tokens, and its attention policies against their definition."""

import pytest
import torch

from pretrain.models.blocks import BlockShape, SelfBlock
from pretrain.models.config import FusionConfig
from pretrain.models.interface import Encoded
from pretrain.models.joint import Joint
from pretrain.models.masks import joint_mask, text_mask
from pretrain.models.packing import Packing
from pretrain.models.pooler import PairPooler
from shards.errors import UserError
from tests.pretrain.test_models import loud, slow_attention

D, TEXTS, IMAGES = 12, 4, 3
TEXT_MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])
IMAGE_MASK = torch.tensor([[True, True, True], [True, False, False]])


def sides() -> tuple[Encoded, Encoded]:
    torch.manual_seed(1)
    text = Encoded(torch.randn(2, TEXTS, D, dtype=torch.float64), TEXT_MASK)
    return text, Encoded(torch.randn(2, IMAGES, D, dtype=torch.float64), IMAGE_MASK)


def trunk(**options) -> Joint:
    return loud(Joint(FusionConfig(**{"trunk": "joint", "depth": 2, "heads": 3, **options}), D, D))


def may_look(attention, query, key, prefix=()):
    """The policies in words; tokens are ("text" or "image", place)."""
    (kind, place), (other, other_place) = query, key
    earlier = other_place <= place if kind == other else other == "image"
    match attention:
        case "bidirectional":
            return True
        case "block":
            return kind == other
        case "causal":
            return earlier
        case "seq2seq":
            return other == "image" or (kind == "text" and earlier)
        case "prefix":
            return other == "image" or other_place in prefix or (kind == "text" and earlier)


@pytest.mark.parametrize("attention", ["bidirectional", "prefix", "seq2seq", "causal", "block"])
def test_policies_are_what_they_say(attention):
    prefix_BL = torch.tensor([[True, False, False, False], [True, True, True, False]])
    found = joint_mask(TEXT_MASK, IMAGE_MASK, attention, prefix_BL)[:, 0].expand(2, TEXTS + IMAGES, -1)
    tokens = [("text", place) for place in range(TEXTS)] + [("image", place) for place in range(IMAGES)]
    for row in range(2):
        there = [*TEXT_MASK[row].tolist(), *IMAGE_MASK[row].tolist()]
        prefix = prefix_BL[row].nonzero()[:, 0].tolist()
        for q, query in enumerate(tokens):
            for k, key in enumerate(tokens):
                expected = there[k] and may_look(attention, query, key, prefix)
                if attention != "bidirectional":
                    expected |= q == k
                assert bool(found[row, q, k]) == expected, (row, query, key)


def test_a_prefix_policy_needs_a_prefix():
    with pytest.raises(ValueError, match="needs a text with `prefix_BL`"):
        joint_mask(TEXT_MASK, IMAGE_MASK, "prefix")


def test_a_causal_text_does_not_look_ahead():
    found = text_mask(Packing.of(TEXT_MASK), causal=True)[:, 0]
    assert all(
        bool(found[b, q, k]) == (k <= q and bool(TEXT_MASK[b, k])) for b in (0, 1) for q in range(4) for k in range(4)
    )


def slow_block(block: SelfBlock, x_TD, mask_TT, texts):
    """Query by query, residual by residual."""

    def attend(x_TD):
        rows = [slow_attention(block.self_attention, x_TD[q : q + 1], x_TD, mask_TT[q]) for q in range(len(x_TD))]
        return torch.cat(rows)

    def residual(norm, x, layer):
        return x + layer(norm(x)) if block.norm == "pre" else norm(x + layer(x))

    x_TD = residual(block.norms[0], x_TD, attend)
    if block.image_feed_forward is None:
        return torch.stack([residual(block.norms[1], x_D, block.feed_forward) for x_D in x_TD])
    text = [residual(block.norms[1], x_D, block.feed_forward) for x_D in x_TD[:texts]]
    return torch.stack(text + [residual(block.norms[2], x_D, block.image_feed_forward) for x_D in x_TD[texts:]])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["bidirectional", "seq2seq", "causal"])
@pytest.mark.parametrize(
    "options", [{"norm": "post"}, {"norm": "pre", "types": True}, {"norm": "pre", "multiway": True, "pooler": "tanh"}]
)
def test_the_trunk_equals_the_loop_over_tokens(options, attention):
    model, (text, image) = trunk(**options), sides()
    fused = model(text, model.remember(image), attention)
    types = torch.zeros(2, D, dtype=torch.float64) if model.types is None else model.types.weight
    for row in range(2):
        x_TD = torch.cat([text.tokens_BTD[row] + types[0], image.tokens_BTD[row] + types[1]])
        mask_TT = joint_mask(TEXT_MASK, IMAGE_MASK, attention)[row, 0].expand(7, 7)
        for block in model.blocks:
            x_TD = slow_block(block, x_TD, mask_TT, TEXTS)
        x_TD = model.final_norm(x_TD)
        # Measured: at most 9e-16 in float64.
        x_TD = torch.where(torch.cat([TEXT_MASK[row], IMAGE_MASK[row]])[:, None], x_TD, 0)
        torch.testing.assert_close(fused.text_BLD[row], x_TD[:TEXTS], rtol=0, atol=1e-12)
        torch.testing.assert_close(fused.image_BND[row], x_TD[TEXTS:], rtol=0, atol=1e-12)
        first = x_TD[0] if options.get("pooler") is None else torch.tanh(model.pooler.text(x_TD[0]))
        torch.testing.assert_close(fused.pooled_BD[row], first, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["bidirectional", "seq2seq", "causal", "block"])
def test_what_is_not_there_changes_nothing(attention):
    model, (text, image) = trunk(norm="pre"), sides()
    one = model(text, model.remember(image), attention)
    noisy = [Encoded(torch.where(s.mask_BT[..., None], s.tokens_BTD, 9.0), s.mask_BT) for s in (text, image)]
    two = model(noisy[0].padded(6), model.remember(noisy[1].padded(5)), attention)
    torch.testing.assert_close(two.text_BLD[:, :TEXTS][TEXT_MASK], one.text_BLD[TEXT_MASK], rtol=0, atol=1e-12)
    torch.testing.assert_close(two.image_BND[:, :IMAGES][IMAGE_MASK], one.image_BND[IMAGE_MASK], rtol=0, atol=1e-12)


@torch.no_grad()
def test_poolers():
    text, image = torch.randn(2, 3, D), torch.randn(2, 2, 5)
    made = {kind: PairPooler(FusionConfig(pooler=kind, pooled_width=7), D, 5) for kind in ("product", "concatenate")}
    product, both = made["product"], made["concatenate"]
    assert (product.width, both.width) == (7, 2 * D)
    expected = product.text(text[:, 0]).clamp(min=0) * product.image(image[:, 0]).clamp(min=0)
    torch.testing.assert_close(product(text, image), expected)
    torch.testing.assert_close(both(text, image)[:, D:], torch.tanh(both.image(image[:, 0])))
    assert torch.equal(PairPooler(FusionConfig(), D, 5)(text, None), text[:, 0])
    with pytest.raises(ValueError, match="needs image tokens"):
        product(text, None)


def test_widths_that_differ_are_refused():
    with pytest.raises(UserError, match=r"`model\.vision` yields width 5; `joint` needs that of the text, 12"):
        Joint(FusionConfig(trunk="joint"), D, 5)


def test_quick_gelu():
    block = SelfBlock(8, BlockShape(heads=2, activation="quick_gelu", hidden=5))
    x = torch.randn(3)
    assert torch.equal(block.feed_forward[1](x), x * torch.sigmoid(1.702 * x))
    assert block.feed_forward[0].out_features == 5


@torch.no_grad()
def test_every_word_carries_the_first_image_token():
    """VL-BERT: as if the words had come with it."""
    model, (text, image) = trunk(image_on_text=True), sides()
    carried = text.tokens_BTD + model.image_norm(image.tokens_BTD[:, :1])
    fused = model(text, model.remember(image))
    model.image_norm = None
    expected = model(Encoded(carried, text.mask_BT), model.remember(image))
    torch.testing.assert_close(fused.text_BLD, expected.text_BLD, rtol=0, atol=1e-12)
