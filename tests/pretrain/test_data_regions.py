"""Regions on their way to the batch: which are read, where they lie, which are hidden, and what is refused."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.checkpoint import load_checkpoint
from pretrain.config import PretrainConfig, RegionsConfig
from pretrain.data.images import evaluation_images
from pretrain.data.labels import UNKNOWN, RegionVocabulary
from pretrain.data.loader import Preparation, check_inputs
from pretrain.data.regions import hide, overlaps, read_regions, spare
from pretrain.data.tokenizer import Tokenizer
from pretrain.objectives.views import Views
from pretrain.settings import parse_config
from pretrain.train import fit
from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import Identity, Region
from shards.stream import ShardStream, StreamedSample
from tests.pretrain.runs import logged

REGION = "model.vision.region={features: 192, width: 32, box: box5}"
SHOWN = RegionVocabulary(("circle", "square", "star"), ("blue", "red"))


@pytest.fixture
def sample(corpus):
    """A scene of 48 x 48 pixels with made-up regions."""
    regions = (
        Region((0, 0, 24, 48), "star", ("red", "striped"), 0.9),
        Region((12, 12, 36, 24), "cube", (), 0.2),
        Region((0, 0, 24, 40), "circle", ("blue",), 0.5),
    )
    features = np.arange(3 * 4, dtype=np.float16).reshape(3, 4)
    return replace(ShardSet(corpus.shards)[0], regions=regions, region_features=features)


def test_the_most_confident_come_in_the_order_of_the_sample(sample):
    found = read_regions(sample, RegionsConfig(most=2), 4, SHOWN)
    assert found.features_KF.tolist() == sample.region_features[[0, 2]].tolist()
    assert found.features_KF.dtype == np.float32
    np.testing.assert_allclose(found.boxes_K4, [[0, 0, 0.5, 1], [0, 0, 0.5, 40 / 48]], rtol=1e-6)
    assert found.labels_K.tolist() == [2, 0]
    assert found.attributes_KA.tolist() == [[1, UNKNOWN], [0, UNKNOWN]]
    assert read_regions(sample, RegionsConfig(), 4, SHOWN).labels_K.tolist() == [2, UNKNOWN, 0]
    assert len(read_regions(sample, RegionsConfig(least_score=0.5), 4, SHOWN)) == 2
    assert len(read_regions(sample, RegionsConfig(least_score=1.0), 4, SHOWN)) == 1


def test_a_distribution_is_the_detectors_or_one_hot(sample):
    config = RegionsConfig(classes=3)
    assert read_regions(sample, config, 4, SHOWN).probabilities_KC.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    given = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.25, 0.25, 0.5]], np.float16)
    detected = replace(sample, region_probabilities=given)
    assert read_regions(detected, config, 4, SHOWN).probabilities_KC.tolist() == given.tolist()
    with pytest.raises(UserError, match=r"`data\.regions\.classes` \(=5\) must be that of the data: .* has 3"):
        read_regions(detected, RegionsConfig(classes=5), 4, SHOWN)


def test_overlap_equals_counting_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (6, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 12, (6, 2))], 1)
    found = overlaps(boxes.astype(np.float32))
    for i, j in product(range(6), range(6)):
        inside = [
            {(x, y) for x in range(left, right) for y in range(top, bottom)}
            for left, top, right, bottom in (boxes[i], boxes[j])
        ]
        assert found[i, j] == pytest.approx(len(inside[0] & inside[1]) / len(inside[0] | inside[1]), rel=1e-6)


def test_a_share_is_hidden_and_at_least_one_and_what_covers_it():
    rng = np.random.default_rng(0)
    apart = np.stack([np.arange(40.0)] * 2 + [np.arange(40.0) + 1] * 2, 1)
    shares = [hide(apart, 0.15, None, rng).mean() for _ in range(500)]
    assert np.mean(shares) == pytest.approx(0.15, abs=0.012)  # 4 standard errors
    assert not hide(apart, 0.0, 0.4, rng).any()
    assert all(hide(apart[:1], 0.15, None, rng).all() for _ in range(20))
    twins = np.array([[0.0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3]])
    together = [hide(twins, 0.3, 0.4, rng) for _ in range(50)]
    assert all(row[0] == row[1] for row in together)
    assert any(row[0] != row[2] for row in together)


def test_hidden_regions_are_zeroed_kept_or_another_images():
    """The shares, and what is seen in each case; LXMERT's 80 / 10 / 10 and ViLBERT's 90 / 10."""
    rng, hidden = np.random.default_rng(0), np.arange(400) % 2 == 0
    own, other = np.ones((400, 3), np.float32), np.full(3, 7, np.float32)
    zeroed, shown = spare(hidden, own, RegionsConfig(hide=0.5, keep=0.1, replace=0.1), rng, lambda: other)
    replaced = (shown == 7).all(1)
    assert not zeroed[~hidden].any()
    assert not (replaced & (zeroed | ~hidden)).any()
    assert (shown[~replaced] == 1).all()
    # 200 hidden regions: 4 standard errors.
    assert zeroed.sum() / 200 == pytest.approx(0.8, abs=0.113)
    assert replaced.sum() / 200 == pytest.approx(0.1, abs=0.085)
    zeroed, shown = spare(hidden, own, RegionsConfig(hide=0.5, keep=0.1), rng, lambda: other)
    assert shown is None
    assert zeroed.sum() / 200 == pytest.approx(0.9, abs=0.085)
    zeroed, shown = spare(hidden, own, RegionsConfig(hide=0.5, replace=1.0), rng, lambda: None)
    assert zeroed.tolist() == hidden.tolist()
    with pytest.raises(
        UserError, match=r"`data\.regions\.keep` \(=0\.6\) and `data\.regions\.replace` \(=0\.5\) must be 1"
    ):
        parse_config(PretrainConfig, {"data": {"regions": {"keep": 0.6, "replace": 0.5}}})


def test_what_is_asked_for_is_not_what_is_seen(configure, corpus):
    """A batch whose hidden regions all show another image's: the model sees those, the loss asks for the own ones."""
    config = configure(REGION, "data.regions={hide: 0.5, replace: 1.0}")
    source = ShardSet(corpus.shards)
    preparation = Preparation(config, Tokenizer(config.data.tokenizer), [source])
    given = {"transform": preparation.transform, "collate": preparation.collate}
    (batch,) = ShardStream(corpus.shards, 8, **given).batches(1)
    hidden = batch.masked_regions_BK
    assert not batch.zeroed_regions_BK.any()
    assert torch.equal(batch.shown_features_BKF[~hidden], batch.region_features_BKF[~hidden])
    assert (batch.shown_features_BKF[hidden] != batch.region_features_BKF[hidden]).any(1).all()
    known = {tuple(row) for i in range(len(source)) for row in source[i].region_features.astype(np.float32).tolist()}
    assert {tuple(row) for row in batch.shown_features_BKF[hidden].tolist()} <= known
    views = Views(SimpleNamespace(), batch, ())
    seen, clean = views._image_input("masked_image"), views._image_input("image")
    assert torch.equal(seen.features_BKF, batch.shown_features_BKF)
    assert torch.equal(seen.hidden_BK, batch.zeroed_regions_BK)
    assert torch.equal(clean.features_BKF, batch.region_features_BKF)
    assert not clean.hidden_BK.any()


@pytest.mark.parametrize(
    ("labels", "objectives", "message"),
    [
        (
            None,
            "{mrc: {classes: 2}}",
            r"`objectives\.mrc` asks for labels, so `data\.regions\.labels` must name their file",
        ),
        (("cube", "star", "x"), "{mrc: {classes: 2}}", r"`objectives\.mrc\.classes` \(=2\) must be at least .* \(=3\)"),
        (("star",), "{mra: {classes: 2}}", r"`objectives\.mra\.classes` \(=2\) must be at least .* \(=4\)"),
        (
            ("cat", "dog"),
            "{mrc: {classes: 2}}",
            r"labels` \(=\S+\) numbers none of the labels of \S+: circle, cube, star",
        ),
    ],
)
def test_classes_are_those_of_the_data(configure, sample, tmp_path, labels, objectives, message):
    regions = {"hide": 0.2}
    if labels:
        RegionVocabulary(labels, ("a", "b", "c", "d")).write(tmp_path / "labels.json")
        regions["labels"] = str(tmp_path / "labels.json")
    trunk = ("model.fusion={trunk: joint, depth: 1, heads: 2}", "model.embedding_dim=null")
    region = REGION.replace("192", "4")
    config = configure(region, f"data.regions={json.dumps(regions)}", f"objectives={objectives}", *trunk)
    with pytest.raises(UserError, match=message):
        check_inputs(config, Tokenizer(config.data.tokenizer), sample)


def test_a_distribution_has_the_classes_of_the_data(configure, sample):
    trunk = ("model.fusion={trunk: joint, depth: 1, heads: 2}", "model.embedding_dim=null")
    objectives = "objectives={mrc: {classes: 4, target: distribution}}"
    with pytest.raises(UserError, match=r"`objectives\.mrc\.classes` \(=4\) must be `data\.regions\.classes` \(=3\)"):
        configure(REGION, "data.regions={hide: 0.2, classes: 3}", objectives, *trunk)
    config = configure(REGION.replace("192", "4"), "data.regions={hide: 0.2, classes: 4}", objectives, *trunk)
    detected = replace(sample, region_probabilities=np.ones((3, 2), np.float16))
    with pytest.raises(UserError, match=r"`data\.regions\.classes` \(=4\) must be that of the data: \S+ has 2"):
        check_inputs(config, Tokenizer(config.data.tokenizer), detected)


def test_a_batch_carries_regions_and_no_pixels(configure, corpus, tmp_path):
    source = ShardSet(corpus.shards)
    vocabulary = RegionVocabulary.of(source[i] for i in range(len(source)))
    vocabulary.write(tmp_path / "labels.json")
    labels = f"data.regions={{labels: {tmp_path / 'labels.json'}, hide: 0.3, classes: {len(vocabulary.labels)}}}"
    config = configure(REGION, labels, "data.second=tags")
    preparation = Preparation(config, Tokenizer(config.data.tokenizer))
    given = {"transform": preparation.transform, "collate": preparation.collate}
    (batch,) = ShardStream(corpus.shards, 8, **given).batches(1)
    lengths = batch.region_mask_BK.sum(1)
    assert batch.pixels_BHWC is None
    assert (int(lengths.min()), int(lengths.max())) == (2, 3)
    assert batch.region_features_BKF.shape == (8, 3, 192)
    assert batch.region_features_BKF.dtype == batch.region_boxes_BK4.dtype == torch.float32
    assert (batch.masked_regions_BK.sum(1) >= 1).all()
    assert not (batch.masked_regions_BK & ~batch.region_mask_BK).any()
    assert ((batch.region_labels_BK >= 0) == batch.region_mask_BK).all()
    assert (batch.region_probabilities_BKC.sum(-1) == batch.region_mask_BK).all()
    classes = batch.region_probabilities_BKC.argmax(-1)
    assert torch.equal(classes[batch.region_mask_BK], batch.region_labels_BK[batch.region_mask_BK])
    assert set(batch.segments_BL.unique().tolist()) == {0, 1}
    assert not (batch.segments_BL.bool() & ~batch.token_mask_BL).any()


def test_a_second_caption_is_another_one(configure, corpus):
    config = configure("data.second=caption", "data.max_tokens=32")
    tokenizer, sample = Tokenizer(config.data.tokenizer), ShardSet(corpus.shards)[0]
    for position in range(6):
        text = Preparation(config, tokenizer).transform(StreamedSample(Identity("s", 0), sample, 0, position, 0)).text
        first, second = (tokenizer._backend.decode(text.ids_L[text.segments_L == n].tolist()) for n in (0, 1))
        assert first != second
        known = {tokenizer._backend.decode(tokenizer.encode(c, 32).ids_L.tolist()) for c in sample.captions}
        assert {first, second} <= known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": (), "region_features": None}, r"`data\.regions` needs regions, and sample \S+ has none"),
        ({"region_features": None}, r"`model\.vision\.region` needs region features, and sample \S+ has none"),
        ({}, r"`model\.vision\.region\.features` \(=192\) must be that of the data: sample \S+ has 4"),
        ({"tags": ()}, r"`data\.second` \(=tags\) needs tags, and sample \S+ has none"),
    ],
)
def test_what_a_sample_lacks_is_refused(configure, sample, change, message):
    config = configure(REGION, "data.regions={}", "data.second=tags")
    with pytest.raises(UserError, match=message):
        check_inputs(config, Tokenizer(config.data.tokenizer), replace(sample, **change))


def test_regions_without_an_image_are_the_same_and_are_not_enough_for_pixels(configure, sample):
    alone = replace(sample, image=b"", extension="", metadata={**sample.metadata, "width": 48, "height": 48})
    found, expected = (read_regions(each, RegionsConfig(), 4, SHOWN) for each in (alone, sample))
    np.testing.assert_array_equal(found.boxes_K4, expected.boxes_K4)
    np.testing.assert_array_equal(found.features_KF, expected.features_KF)
    config = configure()
    message = r"^`model\.vision` must read regions, since sample \S+ has those and no image$"
    with pytest.raises(UserError, match=message):
        check_inputs(config, Tokenizer(config.data.tokenizer), alone)


@pytest.mark.parametrize("content", ["", "[]", '{"labels": []}'])
def test_what_is_no_file_of_labels_is_refused(configure, corpus, tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    config = configure(f"data.regions={{labels: {tmp_path / 'labels.json'}}}")
    with pytest.raises(UserError, match=r'must hold \{"labels": \[\.\.\.\], "attributes": \[\.\.\.\]\}'):
        check_inputs(config, Tokenizer(config.data.tokenizer), ShardSet(corpus.shards)[0])


def test_labels_are_read_as_written(tmp_path):
    SHOWN.write(tmp_path / "labels.json")
    assert RegionVocabulary.read(str(tmp_path / "labels.json")) == SHOWN
    assert json.loads((tmp_path / "labels.json").read_text())["labels"] == ["circle", "square", "star"]


def test_settings_that_cannot_be_together():
    with pytest.raises(UserError, match=r"reads regions, so `data\.regions` must not be null"):
        parse_config(PretrainConfig, {"model": {"vision": {"region": {}}}})
    with pytest.raises(
        UserError, match=r"`data\.augment\.flip` moves pixels, but not the boxes that `data\.regions` reads"
    ):
        parse_config(PretrainConfig, {"data": {"regions": {}, "augment": {"flip": True}}})


def test_a_model_of_regions_trains_and_opens_again(configure, corpus, tmp_path):
    """A UNITER in small: regions and words in one sequence, from shards to a checkpoint that computes the same."""
    trunk = "model.fusion={trunk: joint, depth: 1, heads: 2, pooler: tanh}"
    hidden = "data.regions={hide: 0.15}"
    embedding = "model.text.options.num_hidden_layers=0"
    plain = ("model.embedding_dim=null", "objectives={mlm: {}}", "run.steps=6", "optim.lr=3e-3")
    config = configure(REGION, trunk, hidden, embedding, *plain)
    checkpoint = load_checkpoint(fit(config))
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert losses[-1] < losses[0]
    samples = [ShardSet(corpus.shards)[i] for i in range(4)]
    image = checkpoint.task.model.encode_image(evaluation_images(samples, checkpoint.config))
    assert image.tokens_BTD.shape == (4, 3, 32)
    assert image.mask_BT.sum(1).tolist() == [len(sample.regions) for sample in samples]
