"""Co-attention and encoder-decoder trunks against code that follows one pair, layer by layer."""

import pytest
import torch

from pretrain.models.co_attention import CoAttention
from pretrain.models.config import CoAttentionConfig, FusionConfig
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.first_added import FirstAdded
from pretrain.models.interface import Encoded
from shards.errors import UserError
from tests.pretrain.test_models import loud, slow_attention
from tests.pretrain.test_models_joint import IMAGE_MASK, TEXT_MASK, slow_block

D, C = 12, 8


def sides(image_width: int) -> tuple[Encoded, Encoded]:
    torch.manual_seed(1)
    text = Encoded(torch.randn(2, 4, D, dtype=torch.float64), TEXT_MASK)
    return text, Encoded(torch.randn(2, 3, image_width, dtype=torch.float64), IMAGE_MASK)


def slow_side(side, x, mask, other, other_mask):
    for place, kind in enumerate(side.order):
        norm = side.norms[place]

        def layer(x, kind=kind):
            if kind == "feed":
                return side.feed_forward(x)
            if kind == "self":
                return slow_attention(side.self_attention, x, x, mask)
            return slow_attention(side.cross_attention, x, other, other_mask)

        x = x + layer(norm(x)) if side.norm == "pre" else norm(x + layer(x))
    return x


def slow_trunk(trunk: CoAttention, text, image, text_mask, image_mask):
    for kind, block in zip(trunk.placement, trunk.blocks, strict=True):
        match kind:
            case "text":
                text = slow_block(block, text, text_mask.expand(4, 4), 0)
            case "image":
                image = slow_block(block, image, image_mask.expand(3, 3), 0)
            case "cross":
                new = slow_side(block.text, text, text_mask, image, image_mask)
                image = slow_side(block.image, image, image_mask, text, text_mask)
                text = new
    return trunk.text_norm(text), trunk.image_norm(image)


SYSTEMS = {
    "vilbert": {
        "image_width": C,
        "pooler": "product",
        "pooled_width": 10,
        "co_attention": {
            "placement": ["text", "cross", "text", "image", "cross", "text", "image"],
            "order": ["cross", "feed"],
            "width": 16,
            "heads": 4,
            "image_heads": 2,
            "image_hidden": 6,
        },
    },
    "lxmert": {
        "image_width": D,
        "pooler": "tanh",
        "co_attention": {"placement": ["image*2", "cross*2"], "order": ["cross", "self", "feed"], "shared": True},
    },
    "meter": {"image_width": C, "pooler": "concatenate", "depth": 2},
    "pre-norm": {"image_width": C, "pooler": "concatenate", "depth": 2, "norm": "pre"},
}


@torch.no_grad()
@pytest.mark.parametrize("name", SYSTEMS)
def test_co_attention_equals_following_one_pair(name):
    options = dict(SYSTEMS[name])
    width = options.pop("image_width")
    trunk = loud(CoAttention(FusionConfig(**{"heads": 4, **options}), D, width))
    text, image = sides(width)
    fused = trunk(text, trunk.remember(image))
    for row in range(2):
        expected = slow_trunk(trunk, text.tokens_BTD[row], image.tokens_BTD[row], TEXT_MASK[row], IMAGE_MASK[row])
        # Measured: at most 7e-16 in float64.
        text_there, image_there = TEXT_MASK[row], IMAGE_MASK[row]
        torch.testing.assert_close(fused.text_BLD[row][text_there], expected[0][text_there], rtol=0, atol=1e-12)
        torch.testing.assert_close(fused.image_BND[row][image_there], expected[1][image_there], rtol=0, atol=1e-12)
    assert fused.pooled_BD.shape == (2, trunk.pooler.width)


def test_what_does_not_meet_the_text_is_remembered():
    """Image layers before the first bridge run in `remember`, once however many texts come."""
    placement = CoAttentionConfig(placement=["image*2", "cross"])
    trunk = loud(CoAttention(FusionConfig(heads=3, co_attention=placement), D, D))
    calls = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda block, *_: calls.append(trunk.placement[list(trunk.blocks).index(block)]))
    text, image = sides(D)
    memory = trunk.remember(image)
    assert calls == ["image", "image"]
    trunk(text, memory)
    trunk(text, memory)
    assert calls == ["image", "image", "cross", "cross"]


def test_shared_bridges_have_one_cross_attention_for_both_directions():
    co = {"order": ("cross", "self", "feed")}
    made = {}
    for shared in (True, False):
        config = FusionConfig(heads=3, depth=1, co_attention=CoAttentionConfig(**co, shared=shared))
        made[shared] = CoAttention(config, D, D)
    counts = {shared: sum(p.numel() for p in trunk.parameters()) for shared, trunk in made.items()}
    assert counts[False] - counts[True] == 4 * (D * D + D) + 2 * D
    text, image = sides(D)
    shared = made[True].double()
    shared(text, shared.remember(image)).image_BND.sum().backward()
    assert shared.blocks[0].text.cross_attention.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("placement", [["text*0"], ["sideways"], ["cross * 2"]])
def test_a_placement_that_says_nothing_is_refused(placement):
    with pytest.raises(ValueError, match="placement"):
        CoAttentionConfig(placement=placement)


def test_orders_and_attention_that_cannot_be():
    with pytest.raises(ValueError, match=r"order` \(=\('self', 'feed'\)\) must hold cross, and nothing twice"):
        CoAttentionConfig(order=("self", "feed"))
    trunk = CoAttention(FusionConfig(heads=3, depth=1), D, D).double()
    text, image = sides(D)
    with pytest.raises(ValueError, match=r"`attention` \(=causal\) must be bidirectional"):
        trunk(text, trunk.remember(image), "causal")


PREFIX = torch.tensor([[True, False, False, False], [True, True, False, False]])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("attention", ["prefix", "seq2seq", "bidirectional"])
def test_encoder_and_decoder_equal_following_one_pair(norm, attention):
    trunk = loud(EncoderDecoder(FusionConfig(heads=3, depth=2, decoder_depth=1, norm=norm), D, D))
    text, image = sides(D)
    text = Encoded(text.tokens_BTD, text.mask_BT, prefix_BT=PREFIX)
    fused = trunk(text, trunk.remember(image), attention)
    for row in range(2):
        given = {"prefix": PREFIX[row], "seq2seq": PREFIX[row] & False, "bidirectional": TEXT_MASK[row]}[attention]
        read = torch.cat([given, IMAGE_MASK[row]])
        x = torch.cat([text.tokens_BTD[row], image.tokens_BTD[row]])
        for block in trunk.encoder:
            x = slow_block(block, x, read.expand(7, 7), 0)
        memory, y = trunk.encoder_norm(x), text.tokens_BTD[row]
        for block in trunk.decoder:
            y = slow_decoder_block(block, y, TEXT_MASK[row], memory, read)
        # Measured: at most 5e-16 in float64.
        there, image_there = TEXT_MASK[row], IMAGE_MASK[row]
        torch.testing.assert_close(fused.text_BLD[row][there], trunk.decoder_norm(y)[there], rtol=0, atol=1e-12)
        torch.testing.assert_close(fused.image_BND[row][image_there], memory[4:][image_there], rtol=0, atol=1e-12)


def slow_decoder_block(block, y, mask, memory, read):
    def look_back(x):
        rows = []
        for place in range(len(x)):
            seen = mask & (torch.arange(4) <= place)
            rows.append(slow_attention(block.self_attention, x[place : place + 1], x, seen))
        return torch.cat(rows)

    layers = (look_back, lambda x: slow_attention(block.cross_attention, x, memory, read), block.feed_forward)
    for norm, layer in zip(block.norms, layers, strict=True):
        y = y + layer(norm(y)) if block.norm == "pre" else norm(y + layer(y))
    return y


@torch.no_grad()
def test_a_decoder_never_sees_what_it_has_to_write():
    trunk = loud(EncoderDecoder(FusionConfig(heads=3, depth=1), D, D))
    text, image = sides(D)
    one = Encoded(text.tokens_BTD, text.mask_BT, prefix_BT=PREFIX)
    other = torch.where(PREFIX[..., None], text.tokens_BTD, text.tokens_BTD.flip(0))
    changed = Encoded(other, text.mask_BT, prefix_BT=PREFIX)
    memory = trunk.remember(image)
    before, after = (trunk(t, memory, "prefix").text_BLD for t in (one, changed))
    torch.testing.assert_close(before[PREFIX], after[PREFIX], rtol=0, atol=1e-12)
    assert not torch.allclose(before[~PREFIX], after[~PREFIX])


def test_what_an_encoder_decoder_needs():
    with pytest.raises(UserError, match=r"`model\.vision` yields width 8; this trunk needs the text's 12"):
        EncoderDecoder(FusionConfig(), D, C)
    trunk = EncoderDecoder(FusionConfig(heads=3, depth=1), D, D).double()
    text, image = sides(D)
    for attention, message in (("prefix", "needs a text with `prefix_BL`"), ("block", r"\(=block\) is not known")):
        with pytest.raises(ValueError, match=message):
            trunk(text, trunk.remember(image), attention)


@torch.no_grad()
def test_first_tokens_are_added():
    """LightningDOT: each side with what the other says first, and no layer but the pooler's."""
    trunk = loud(FirstAdded(FusionConfig(trunk="first_added", pooler="concatenate"), D, D))
    text, image = sides(D)
    fused = trunk(text, trunk.remember(image))
    for row in range(2):
        for place in range(4):
            expected = text.tokens_BTD[row, place] + image.tokens_BTD[row, 0]
            torch.testing.assert_close(fused.text_BLD[row, place], expected)
        for place in range(3):
            expected = image.tokens_BTD[row, place] + text.tokens_BTD[row, 0]
            torch.testing.assert_close(fused.image_BND[row, place], expected)
    assert fused.pooled_BD.shape == (2, 2 * D)
    with pytest.raises(ValueError, match=r"`attention` \(=causal\) must be bidirectional for first_added"):
        trunk(text, trunk.remember(image), "causal")
    with pytest.raises(UserError, match=r"yields width 8; `first_added` needs that of the text, 12"):
        FirstAdded(FusionConfig(trunk="first_added"), D, C)
