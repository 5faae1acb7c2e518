"""Queries for the report: some spread evenly over the data, the worst by rank, and small pictures of what they show."""

import base64
from collections.abc import Iterable, Sequence

import numpy as np

from finetune.pictures import thumbnail
from finetune.ranking import Ranked
from finetune.results import Example, Examples, Found
from finetune.retrieval import RetrievalSet

SAMPLES, WORST, FIRST = 8, 12, 5
THUMBNAIL = 128  # pixels of the longer side: twice what the page shows


def collect_examples(data: RetrievalSet, ranked: Sequence[Ranked]) -> Examples:
    """Examples of one direction from all its folds; the worst are those with the largest pessimistic rank."""
    rank_Q = np.concatenate([part.ranks.pessimistic for part in ranked])
    even = np.unique(np.linspace(0, len(rank_Q) - 1, SAMPLES).round().astype(int))
    worst = np.argsort(-rank_Q, kind="stable")[:WORST]
    return Examples(
        sample=[_example(data, ranked, int(query)) for query in even],
        worst=[_example(data, ranked, int(query)) for query in worst if rank_Q[query] > 1],
    )


def _example(data: RetrievalSet, ranked: Sequence[Ranked], query: int) -> Example:
    part = next(r for r in ranked if r.side.queries.start <= query < r.side.queries.stop)
    local = query - part.side.queries.start
    image = query if part.side.by_image else int(data.image_T[query])
    return Example(
        key=data.keys[image],
        text="" if part.side.by_image else data.texts[query],
        captions=data.texts[data.texts_of(image)],
        rank=int(part.ranks.pessimistic[local]),
        found=[_found(data, part, image, item, score) for item, score in part.best(local, FIRST)],
    )


def _found(data: RetrievalSet, part: Ranked, image: int, item: int, score: float) -> Found:
    owner = int(data.image_T[item]) if part.side.by_image else item
    text = data.texts[item if part.side.by_image else data.texts_of(item).start]
    return Found(key=data.keys[owner], text=text, score=score, right=owner == image)


def thumbnails(data: RetrievalSet, examples: Iterable[Examples]) -> dict[str, str]:
    """Data URIs of every image that the examples show, by key."""
    place = {key: index for index, key in enumerate(data.keys)}
    shown: dict[str, str] = {}
    for example in (e for both in examples for e in [*both.sample, *both.worst]):
        for key in [example.key, *(item.key for item in example.found if example.text)]:
            if key not in shown:
                shown[key] = _thumbnail(data, place[key])
    return shown


def _thumbnail(data: RetrievalSet, index: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(data.source[index], THUMBNAIL)).decode()
