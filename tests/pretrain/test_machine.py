"""What a rank makes of the machine's allocator."""

import os
import subprocess
import sys

PAGES = 16 * 2**20 // os.sysconf("SC_PAGE_SIZE")
COUNT = """
import resource, sys
import torch
from pretrain.machine import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for _ in range(10):
    torch.ones(4 * 2**20)  # 16 MiB; the first few leave splinters at their ends
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(4 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **variables: str) -> int:
    """Of ten tensors of 16 MiB, one after the other, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ended = subprocess.run(
        [sys.executable, "-c", COUNT, how], env=kept | variables, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


def test_a_tensor_takes_the_memory_of_the_one_before():
    assert page_faults("keep") < PAGES


def test_what_the_environment_says_stays():
    given = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    assert page_faults("keep", **given) > 9 * PAGES
