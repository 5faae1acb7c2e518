"""Pairs per second of two-stage scoring against encoding every pair again, by the same model, interleaved in one run.

python benchmarks/rerank.py --ckpt runs/demo/finetune --shards runs/demo/shards/test [-k 128] [--rounds 5]
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from finetune.candidates import top
from finetune.retrieval import RetrievalSet, open_input
from finetune.score import Scorer
from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.data.images import evaluation_images
from pretrain.models.interface import TextInput

SLOW_IMAGES = 8  # that the slow way scores per round; it would take minutes for all


def fast(scorer: Scorer, candidates_Ik: np.ndarray) -> tuple[float, np.ndarray]:
    """Pairs per second, and the scores of the first images."""
    images, k = candidates_Ik.shape
    start = time.perf_counter()
    scores = scorer.matching(np.repeat(np.arange(images), k), candidates_Ik.ravel())
    return scores.size / (time.perf_counter() - start), scores[: SLOW_IMAGES * k]


@torch.inference_mode()
def slow(checkpoint: Checkpoint, data: RetrievalSet, candidates_Ik: np.ndarray) -> tuple[float, np.ndarray]:
    """The straightforward loop: both encoders and the fusion for each pair, one image's candidates at a time."""
    model, head, found = checkpoint.task.model, checkpoint.task.objectives["itm"], []
    start = time.perf_counter()
    for image, texts in enumerate(candidates_Ik[:SLOW_IMAGES]):
        images = evaluation_images([data.source[image]] * len(texts), checkpoint.config)
        tokens = checkpoint.tokenizer.batch([data.texts[i] for i in texts], checkpoint.config.data.max_tokens)
        memory = model.remember(model.encode_image(images))
        found.append(head.score(model.fuse(model.encode_text(TextInput(*tokens)), memory)))
    scores = torch.cat(found).numpy()
    return scores.size / (time.perf_counter() - start), scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("-k", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.ckpt)
    data = RetrievalSet.from_source(open_input(None, None, "", arguments.shards).source)
    scorer = Scorer(checkpoint, data)
    candidates_Ik, _ = top(scorer.similarity().by_image_IT, arguments.k)
    ratios = []
    for _ in range(arguments.rounds):
        (us, our_scores), (them, their_scores) = fast(scorer, candidates_Ik), slow(checkpoint, data, candidates_Ik)
        ratios.append(us / them)
        apart = float(np.abs(our_scores - their_scores).max())
        print(f"two-stage {us:7.0f} pairs/s   every pair again {them:6.0f} pairs/s   largest difference {apart:.1e}")
    print(f"median ratio at k = {arguments.k}: {statistics.median(ratios):.1f}")
    print(
        f"range {min(ratios):.1f} to {max(ratios):.1f}; torch {torch.__version__} on {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
