"""Time to an answer of `finetune serve` under many users: queries answered together against one at a time, interleaved.

    python benchmarks/serve.py INDEX [--users 100] [--each 5] [--rerank 0] [--rounds 5]

Two servers in processes of their own, the same but for how many waiting queries go through the model together. All
users of a round connect together and keep their connection; texts are captions of the index. Prints p50 and p95.
"""

import argparse
import http.client
import importlib.metadata
import json
import multiprocessing
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from finetune.search import batcher, server
from finetune.search.index import Index
from finetune.search.query import Searcher


def serve(index: Path, together: int, pipe: Connection) -> None:
    batcher.MOST_TOGETHER = together
    server.serve(Searcher.open(index), "127.0.0.1", 0, pipe.send)


def start(index: Path, together: int) -> tuple[multiprocessing.Process, int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(index, together, theirs), daemon=True)
    process.start()
    return process, int(ours.recv().rsplit(":", 1)[1])


def crowd(port: int, users: int, each: int, texts: list[str], rerank: int) -> np.ndarray:
    """Milliseconds of every query; a status other than 200 ends the benchmark."""
    gate = threading.Barrier(users)

    def user(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        gate.wait()
        times = []
        for turn in range(each):
            fields = urlencode({"q": texts[(number * each + turn) % len(texts)], "rerank": rerank})
            begin = time.perf_counter()
            connection.request("GET", f"/api/search?{fields}")
            response = connection.getresponse()
            answer = json.loads(response.read())
            times.append(1000 * (time.perf_counter() - begin))
            assert response.status == 200, answer
        connection.close()
        return times

    with ThreadPoolExecutor(users) as pool:
        return np.array([value for times in pool.map(user, range(users)) for value in times])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--rerank", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = [caption for caption in Index(arguments.index).items.captions if caption][:1000] or ["a picture"]
    arms = {name: start(arguments.index, size) for name, size in (("together", 32), ("one at a time", 1))}
    medians: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(arguments.rounds):
        for name, (_, port) in arms.items():
            begin = time.perf_counter()
            times = crowd(port, arguments.users, arguments.each, texts, arguments.rerank)
            rate = len(times) / (time.perf_counter() - begin)
            p50, p95 = np.percentile(times, [50, 95])
            medians[name].append(float(p50))
            print(f"{name:14} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms   {rate:6.0f} queries/s", flush=True)
    for process, _ in arms.values():
        process.kill()
    ratios = [slow / fast for fast, slow in zip(*medians.values(), strict=True)]
    print(
        f"median ratio of p50, one at a time to together: {statistics.median(ratios):.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f}); torch {importlib.metadata.version('torch')}"
    )


if __name__ == "__main__":
    main()
