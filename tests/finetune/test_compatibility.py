"""Each mode against a second, slow telling of what that paper's code does, in plain Python on lists."""

import numpy as np
import pytest
import torch

from finetune.compatibility import albef, clip_benchmark, open_clip, oscar, uniter, vilt, vsepp
from finetune.compatibility.material import Material
from finetune.compatibility.modes import MODES, check_captions, check_modes, run_modes
from shards.errors import UserError

IMAGES = 60
TIE_FREE = 17  # a seed with which no right pair ties with a wrong one in half precision


def material(seed=0, per_image=5, images=IMAGES, levels=None, **changes):
    """Scores in which right pairs stand out a little; `levels` rounds them, which makes ties."""
    rng = np.random.default_rng(seed)
    counts = np.full(images, per_image) if isinstance(per_image, int) else rng.integers(*per_image, images)
    image_T = np.repeat(np.arange(images), counts)
    scores = rng.standard_normal((images, len(image_T))) + 1.5 * (np.arange(images)[:, None] == image_T)
    scores = (np.round(scores * levels) / levels if levels else scores).astype(np.float32)
    logits = rng.standard_normal(scores.shape).astype(np.float32) + scores
    fields = {
        "similarity_IT": scores,
        "image_T": image_T,
        "texts": [f"text {n}" for n in range(len(image_T))],
        "k": 16,
        "logits": lambda image, text: logits[image, text],
    }
    return Material(**{**fields, **changes}), logits


def order(row):
    """Indices by falling score; only for rows without ties among what matters."""
    return sorted(range(len(row)), key=lambda item: -row[item])


def slow_places(rows, right):
    """Place of the first right item of each row, from 0."""
    return [next(p for p, item in enumerate(order(row)) if right(q, item)) for q, row in enumerate(rows)]


def half_of(logits, made):
    """Scores in half precision, on which the order of ties would be anybody's guess."""
    half = logits.astype(np.float16).astype(np.float64)
    right = half[made.image_T, np.arange(len(made.image_T))]
    assert ((half == right) & (np.arange(len(half))[:, None] != made.image_T)).sum() == 0
    return half


def shares(places, scale=100.0):
    return tuple(scale * sum(p < k for p in places) / len(places) for k in (1, 5, 10))


def test_vsepp_on_one_gallery():
    made, _ = material(3, logits=None)
    rows = made.similarity_IT.tolist()
    i2t = slow_places(rows, lambda image, text: text // 5 == image)
    t2i = slow_places(list(map(list, zip(*rows, strict=True))), lambda text, image: text // 5 == image)
    printed = vsepp.run(made)
    assert printed.i2t == pytest.approx(shares(i2t))
    assert printed.t2i == pytest.approx(shares(t2i))
    assert printed.lines["rsum"] == pytest.approx(sum(shares(i2t)) + sum(shares(t2i)))
    assert printed.lines["Image to text median"] == np.floor(np.median(i2t)) + 1
    assert printed.lines["Text to image mean"] == pytest.approx(np.mean(t2i) + 1)


def test_vsepp_over_folds_prints_an_rsum_that_ignores_text_to_image():
    made, _ = material(4, folds=5, logits=None)
    printed = vsepp.run(made)
    per_fold = []
    for fold in range(5):
        rows = made.similarity_IT[fold * 12 : fold * 12 + 12, fold * 60 : fold * 60 + 60].tolist()
        per_fold.append(shares(slow_places(rows, lambda image, text: text // 5 == image)))
    assert printed.i2t == pytest.approx(np.mean(per_fold, axis=0))
    assert printed.lines["rsum"] == pytest.approx(2 * sum(printed.i2t))
    assert printed.lines["rsum"] != pytest.approx(sum(printed.i2t) + sum(printed.t2i))


def test_sixth_captions_are_not_seen_by_codes_that_count_by_five():
    made, _ = material(5, per_image=(5, 8), logits=None)
    kept = np.concatenate([np.flatnonzero(made.image_T == image)[:5] for image in range(IMAGES)])
    plain = Material(made.similarity_IT[:, kept], made.image_T[kept], [made.texts[t] for t in kept])
    assert vsepp.run(made) == vsepp.run(plain)
    assert oscar.run(made) == oscar.run(plain)


def test_uniter_counts_query_numbers():
    made, logits = material(TIE_FREE)
    half = half_of(logits, made)
    printed = uniter.run(made)
    hits = {1: 0, 5: 0, 10: 0}
    for text in range(len(made.image_T)):
        best = order(half[:, text])[:10]
        if made.image_T[text] in best:
            place = best.index(made.image_T[text])
            for k in hits:
                hits[k] += (place < k) + (text < k)
    assert printed.t2i == pytest.approx([100 * hits[k] / len(made.image_T) for k in (1, 5, 10)])
    honest = slow_places(half.T.tolist(), lambda text, image: made.image_T[text] == image)
    assert sum(printed.t2i) > sum(shares(honest)), "the inflation is the point"
    i2t = slow_places(half.tolist(), lambda image, text: made.image_T[text] == image)
    assert printed.i2t == pytest.approx(shares(i2t))
    assert printed.lines["r_mean"] == pytest.approx((sum(printed.i2t) + sum(printed.t2i)) / 600)


def test_uniter_at_flickr_size_gains_a_third_of_a_point():
    """A perfect system of 1,000 images with five captions: 1 + 5 + 10 query numbers of 5,000 are counted too."""
    image_T = np.repeat(np.arange(1000), 5)
    perfect = (np.arange(1000)[:, None] == image_T).astype(np.float32)
    printed = uniter.run(Material(perfect, image_T, [""] * 5000))
    assert sum(printed.i2t) == 300
    assert sum(printed.t2i) == pytest.approx(300.32)


def test_oscar_on_a_fixed_list():
    chosen = np.array([40, 3, 17, 22, 5, 59, 31, 8, 50, 44, 2, 12])
    made, logits = material(7, subset=chosen)
    texts = [int(t) for image in chosen for t in np.flatnonzero(made.image_T == image)]
    rows = [[float(logits[image, text]) for text in texts] for image in chosen]
    printed = oscar.run(made)
    assert printed.i2t == pytest.approx(shares(slow_places(rows, lambda i, t: t // 5 == i)))
    columns = list(map(list, zip(*rows, strict=True)))
    assert printed.t2i == pytest.approx(shares(slow_places(columns, lambda t, i: t // 5 == i)))
    assert printed.lines["i2t_retrieval R@1"] == pytest.approx(printed.i2t[0] / 100)
    assert printed != oscar.run(material(7)[0])


@pytest.mark.parametrize("blip", [False, True])
def test_albef_and_blip(blip):
    made, logits = material(8, per_image=(3, 8))
    printed = (albef.run_blip if blip else albef.run)(made)

    def slow(similarity, scores, right):
        places = []
        for query, row in enumerate(similarity):
            best = order(row)[: made.k]
            first = [scores[query][item] + (row[item] if blip else 0.0) for item in best]
            sixth = [best[n] for n in order(first)]
            hit = [p for p, item in enumerate(sixth) if right(query, item)]
            places.append(hit[0] if hit else 10**9)
        return shares(places)

    similarity = made.similarity_IT.tolist()
    i2t = slow(similarity, logits.tolist(), lambda image, text: made.image_T[text] == image)
    t2i = slow(made.similarity_IT.T.tolist(), logits.T.tolist(), lambda text, image: made.image_T[text] == image)
    assert printed.i2t == pytest.approx(i2t)
    assert printed.t2i == pytest.approx(t2i)
    assert printed.lines["txt_r_mean"] == pytest.approx(sum(i2t) / 3)
    assert printed.lines["r_mean"] == pytest.approx((sum(i2t) + sum(t2i)) / 6)


def test_the_sum_over_ranks_shifts_scores_and_makes_ties():
    similarity = np.zeros((1, 4), np.float32)
    candidates, scores = np.array([[0, 1]]), np.array([[1.0, 1.0 + 1e-5]], np.float32)
    alone = albef.summed_over_ranks(similarity, candidates, scores, ranks=1)
    eight = albef.summed_over_ranks(similarity, candidates, scores, ranks=8)
    assert alone[0, 0] != alone[0, 1]
    assert alone[0, 2] == -100
    assert eight[0, 0] == eight[0, 1] == -699
    assert eight[0, 3] == -800


def test_vilt_pads_the_gallery_and_drops_repeats():
    made, logits = material(TIE_FREE)
    texts = list(made.texts)
    texts[1], texts[7] = texts[0], texts[6]  # two images that repeat a caption
    made = Material(made.similarity_IT, made.image_T, texts, logits=made.logits)
    kept = [t for t in range(len(texts)) if t not in (1, 7)]
    assert vilt.distinct(made).tolist() == kept
    gallery = [image % IMAGES for rank in range(8) for image in range(rank, 64, 8)]
    assert vilt.padded_order(IMAGES, 8).tolist() == gallery
    assert sorted(gallery) == sorted([*range(IMAGES), 0, 1, 2, 3]), "60 images on 8 ranks: four stand twice"
    half = half_of(logits, made)
    rows = [[half[image, text] for text in kept] for image in gallery]
    i2t = slow_places(rows, lambda place, item: made.image_T[kept[item]] == gallery[place])
    printed = vilt.run(made)
    assert printed.i2t == pytest.approx(shares(i2t))
    columns = list(map(list, zip(*rows, strict=True)))
    t2i = slow_places(columns, lambda item, place: gallery[place] == made.image_T[kept[item]])
    assert printed.t2i == pytest.approx(shares(t2i))
    assert printed.lines["ir_r10"] == pytest.approx(printed.t2i[2] / 100)


def test_open_clip_takes_one_caption():
    made, _ = material(10, per_image=(1, 4))
    first = [int(np.flatnonzero(made.image_T == image)[0]) for image in range(IMAGES)]
    rows = made.similarity_IT[:, first].tolist()
    printed = open_clip.run(made)
    i2t = slow_places(rows, lambda image, text: text == image)
    assert printed.i2t == pytest.approx(shares(i2t))
    assert printed.lines["image_to_text_mean_rank"] == pytest.approx(np.mean(i2t) + 1)
    assert printed.lines["text_to_image_median_rank"] == np.floor(
        np.median(slow_places(list(map(list, zip(*rows, strict=True))), lambda t, i: t == i)) + 1
    )


def test_open_clip_against_open_clip():
    """Its own function, where it is installed."""
    train = pytest.importorskip("open_clip_train.train")
    made, _ = material(11, per_image=1)
    theirs = train.get_clip_metrics(torch.eye(IMAGES), torch.from_numpy(made.similarity_IT.T.copy()), torch.tensor(1.0))
    assert open_clip.run(made).lines == pytest.approx({k: float(v) for k, v in theirs.items()})


def test_clip_benchmark_rounds_features():
    rng = np.random.default_rng(12)
    image_T = np.repeat(np.arange(IMAGES), 3)
    image = rng.standard_normal((IMAGES, 8)).astype(np.float32)
    text = (image[image_T] + rng.standard_normal((len(image_T), 8))).astype(np.float32)
    image, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text))
    printed = clip_benchmark.run(Material(image @ text.T, image_T, [""] * len(image_T), embeddings=(image, text)))
    rounded = [side.astype(np.float16).astype(np.float64) for side in (image, text)]
    image, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in rounded)
    rows = (image @ text.T).tolist()
    assert printed.i2t == pytest.approx(shares(slow_places(rows, lambda i, t: image_T[t] == i)))
    t2i = slow_places(list(map(list, zip(*rows, strict=True))), lambda t, i: image_T[t] == i)
    assert printed.t2i == pytest.approx(shares(t2i))
    assert printed.lines["image_retrieval_recall@5"] == pytest.approx(printed.t2i[1] / 100)


@pytest.mark.parametrize("name", ["vse++", "oscar", "albef", "open_clip"])
def test_ties_fall_as_an_unstable_sort_leaves_them(name):
    """Of all-equal scores any figure between the two tie rules may be printed; ours says which rule it took instead."""
    made, _ = material(13, levels=1, logits=lambda image, text: np.zeros(len(image), np.float32))
    printed = run_modes([name], made)[0]
    assert printed.mode == name
    assert all(0 <= value <= 100 for value in (*printed.i2t, *printed.t2i))


def test_all_modes_run_once_and_in_order():
    made, _ = material(14)
    made = Material(
        **{**vars(made), "embeddings": (np.eye(IMAGES, dtype=np.float32), made.similarity_IT.T.copy())},
    )
    names = [*MODES, "vilt"]
    assert [printed.mode for printed in run_modes(names, made)] == list(MODES)


def test_refusals():
    check_modes(["vse++", "albef"], matches=True, shares=True, k=32)
    with pytest.raises(UserError, match=r"`--compat` \(=vse\) must be one of .*; did you mean `vse\+\+`"):
        check_modes(["vse"], matches=True, shares=True, k=32)
    for matches, k in ((False, 32), (True, 0)):
        with pytest.raises(UserError, match=r"`--compat` \(=blip\) re-ranks: it needs a matching head and `--rerank`"):
            check_modes(["blip"], matches, True, k)
    with pytest.raises(UserError, match=r"`--compat` \(=open_clip\) compares embeddings: it needs a shared space"):
        check_modes(["uniter", "open_clip"], matches=True, shares=False, k=0)
    with pytest.raises(UserError, match=r"`--compat` \(=oscar\) counts on 5 captions of each image; one image has 4"):
        check_captions(["open_clip", "oscar"], 4)
