"""Batches are a function of seed and position: not of workers, ranks or epochs gone by."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from pretrain.batch import Batch
from pretrain.data.augment_config import AugmentConfig
from pretrain.data.groups import Groups
from pretrain.data.kept import KeptPixels
from pretrain.data.loader import Preparation
from pretrain.data.masking import IGNORE
from pretrain.data.pixels import Pictures
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.transforms import evaluation_pixels
from shards.errors import DamagedSample, UserError
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.stream import ShardStream, StreamedSample
from tests.pretrain.colours import Colours

AUGMENTED = "data.augment={color: 0.3, flip: true, erase: 0.5, rotate: 10, bend: 0.1, hue: 0.2, sharpen: 1}"


def batches(config, count: int, **how) -> list[Batch]:
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    given = {"transform": preparation.transform, "collate": preparation.collate, "seed": config.run.seed}
    return list(ShardStream(config.data.shards, config.data.global_batch, **given, **how).batches(count))


def assert_equal(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert (left is right is None) or torch.equal(left, right), field.name


def together(parts: list[Batch]) -> Batch:
    """The ranks' parts of one batch, padded to the longest text of all."""
    longest = max(part.token_ids_BL.shape[1] for part in parts)
    fill = {"masked_labels_BL": IGNORE}

    def joined(name: str) -> torch.Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        if not name.endswith("_BL"):
            return torch.cat(values)
        padded = [torch.nn.functional.pad(v, (0, longest - v.shape[1]), value=fill.get(name, 0)) for v in values]
        return torch.cat(padded)

    return Batch(**{field.name: joined(field.name) for field in fields(Batch)})


def test_workers_change_nothing(configure):
    config = configure(AUGMENTED)
    for one, other in zip(batches(config, 10), batches(config, 10, workers=2), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_parts_are_the_batch(configure, world):
    config = configure(AUGMENTED)
    parts = zip(*(batches(config, 10, rank=rank, world=world) for rank in range(world)), strict=True)
    for whole, split in zip(batches(config, 10), parts, strict=True):
        assert_equal(whole, together(list(split)))


def test_shapes_and_types(configure):
    (batch,) = batches(configure("data.global_batch=6"), 1)
    pairs, length = batch.token_ids_BL.shape
    assert (pairs, len(batch)) == (6, 6)
    assert batch.pixels_BHWC.shape == (6, 32, 32, 3)
    assert batch.pixels_BHWC.dtype == torch.uint8
    assert batch.token_mask_BL.shape == batch.masked_ids_BL.shape == batch.masked_labels_BL.shape == (6, length)
    assert (batch.token_mask_BL.dtype, batch.group_B.dtype, batch.draws_BK.dtype) == (
        torch.bool,
        torch.int64,
        torch.float64,
    )
    assert batch.token_mask_BL.sum(1).max() == length
    assert ((batch.draws_BK >= 0) & (batch.draws_BK < 1)).all()


def test_texts_carry_their_frame_and_hidden_words_their_labels(configure):
    config = configure()
    tokenizer = Tokenizer(config.data.tokenizer)
    (batch,) = batches(config, 1)
    first, last = tokenizer.first_id, tokenizer.last_id
    assert (batch.token_ids_BL[:, 0] == first).all()
    for ids, mask in zip(batch.token_ids_BL, batch.token_mask_BL, strict=True):
        assert ids[mask][-1] == last
        assert (ids[~mask] == tokenizer.pad_id).all()
    hidden = batch.masked_labels_BL != IGNORE
    assert hidden.any(1).all()
    assert torch.equal(batch.masked_labels_BL[hidden], batch.token_ids_BL[hidden])
    assert torch.equal(batch.masked_ids_BL[~hidden], batch.token_ids_BL[~hidden])


def test_without_masked_words_nothing_is_hidden(configure):
    (batch,) = batches(configure("objectives.mlm=null"), 1)
    assert torch.equal(batch.masked_ids_BL, batch.token_ids_BL)
    assert (batch.masked_labels_BL == IGNORE).all()


def test_a_picture_meets_another_of_its_captions_in_another_epoch(configure):
    """64 scenes in eights: batches 0-7 are one epoch, 8-15 the next. Five captions: one in five repeats by chance."""
    found = batches(configure(), 16)
    texts = [
        {int(g): tuple(ids.tolist()) for b in epoch for g, ids in zip(b.group_B, padded(b), strict=True)}
        for epoch in (found[:8], found[8:])
    ]
    assert texts[0].keys() == texts[1].keys()
    assert len(texts[0]) == 64
    changed = sum(texts[0][group] != texts[1][group] for group in texts[0])
    assert 38 <= changed <= 62  # 51 expected, four standard deviations


def padded(batch: Batch) -> torch.Tensor:
    return torch.nn.functional.pad(batch.token_ids_BL, (0, 40 - batch.token_ids_BL.shape[1]))


def test_another_seed_is_another_sequence(configure):
    one, other = batches(configure(), 1)[0], batches(configure("run.seed=1"), 1)[0]
    assert not torch.equal(one.group_B, other.group_B)


def item(sample: Sample, position: int = 0, index: int = 0) -> StreamedSample:
    return StreamedSample(Identity("made-up", index), sample, 0, position, 0)


def test_pairs_of_a_group_share_a_number_and_others_do_not(configure):
    colours = Colours()
    config = configure("data.group_by=colour")
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    groups = [preparation.transform(item(colours[i % 4], i, i)).group for i in range(8)]
    assert groups[:4] == groups[4:]
    assert len(set(groups)) == 4
    alone = Preparation(configure(), preparation.tokenizer)
    assert len({alone.transform(item(colours[i % 4], i, i)).group for i in range(8)}) == 8


def test_a_group_that_samples_do_not_have_is_refused(configure):
    config = configure("data.group_by=concept")
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    with pytest.raises(UserError, match=r"`data\.group_by` \(=concept\) is not in the metadata of sample red"):
        preparation.transform(item(Colours()[0]))


def test_joined_captions_are_all_there_in_changing_order(configure):
    config = configure("data.captions=join", "data.max_tokens=32")
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    sample = replace(Colours()[0], captions=("red", "green", "blue", "yellow"))
    texts = [preparation.transform(item(sample, position)).text.ids_L for position in range(8)]
    words = preparation.tokenizer.encode("red green blue yellow", 32).ids_L
    assert all(sorted(text) == sorted(words) for text in texts)
    assert len({tuple(text) for text in texts}) > 1


def test_long_texts_are_cut_to_the_length_and_keep_their_end(configure):
    config = configure()
    tokenizer = Tokenizer(config.data.tokenizer)
    ids = tokenizer.encode("red " * 100, 12).ids_L
    assert len(ids) == 12
    assert ids[-1] == tokenizer.last_id
    assert len(tokenizer.encode("red " * 100, 20).ids_L) == 20


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"is not a tokenizer\.json: ") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"crop_scale": 0.3}, {"flip": True}])
def test_what_is_done_to_each_image_depends_on_its_generator_alone(corpus, change):
    source = ShardSet(corpus.shards)
    whole = evaluation_pixels(source[0], 32)

    def views(config: AugmentConfig) -> list[torch.Tensor]:
        made = Pictures(config, 32, 10**6, [source], lambda identity, sample: 0)
        read = [made.read(source.identity(0), source[0], np.random.default_rng(seed)) for seed in range(6)]
        return list(made.stack(read)[0])

    assert all(torch.equal(view, whole) for view in views(AugmentConfig()))
    changed = views(AugmentConfig(**change))
    assert all(torch.equal(a, b) for a, b in zip(changed, views(AugmentConfig(**change)), strict=True))
    assert any(not torch.equal(view, whole) for view in changed)


def test_decoded_images_that_are_kept_change_nothing(configure):
    kept, made = (batches(configure(AUGMENTED, f"data.keep_gigabytes={size}"), 10) for size in (1, 0))
    for one, other in zip(kept, made, strict=True):
        assert_equal(one, other)


def test_no_more_is_kept_than_allowed():
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    kept = KeptPixels(limit=3 * image.nbytes)
    for number in [*range(5), 0, 4]:
        assert kept.get(Identity("made-up", number), image.clone).equal(image)
    assert len(kept) == 3
    first = kept.get(Identity("made-up", 0), lambda: pytest.fail("it was kept"))
    assert first is kept.get(Identity("made-up", 0), image.clone)


def halves(identity: Identity, sample: Sample) -> int:
    """Red and green against blue and yellow."""
    return identity.ordinal // 2


def test_partners_are_others_of_the_group():
    colours, rng = Colours(), np.random.default_rng(0)
    groups = Groups([colours, colours], halves)  # twice: each has two twins of its own identity's group
    found = [groups.partner(0, colours.identity(0), rng) for _ in range(20)]
    assert {partner[1].metadata["colour"] for partner in found if partner} == {"green"}
    assert None not in found
    assert groups.partner(99, colours.identity(0), rng) is None


def test_who_is_alone_in_a_group_has_no_partner():
    colours = Colours()
    alone = Groups([colours], lambda identity, sample: identity.ordinal)
    assert alone.partner(0, colours.identity(0), np.random.default_rng(0)) is None


def test_damaged_partners_are_passed_over():
    class Torn(Colours):
        def __getitem__(self, index):
            if index == 1:
                raise DamagedSample("torn")
            return super().__getitem__(index)

    torn = Torn()
    assert Groups([torn], halves).partner(0, torn.identity(0), np.random.default_rng(0)) is None
    found = Groups([torn], lambda identity, sample: 0).partner(0, torn.identity(0), np.random.default_rng(0))
    assert found is not None
    assert found[1].metadata["colour"] in {"blue", "yellow"}


def test_partners_are_blended_in():
    """Red with green: pixels between the two, or of both."""
    colours = Colours()
    pictures = Pictures(AugmentConfig(blend=1.0), 8, 0, [colours], halves)
    rows = [pictures.read(colours.identity(0), colours[0], np.random.default_rng(seed)) for seed in range(20)]
    red_BHW, green_BHW, blue_BHW = pictures.stack(rows)[0].int().unbind(-1)
    assert ((red_BHW + green_BHW - 255).abs() <= 1).all()
    assert (blue_BHW == 0).all()
    assert (green_BHW > 0).flatten(1).any(1).sum() > 10
