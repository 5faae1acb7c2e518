"""Runs code in a fresh interpreter whose memory has a limit, which the kernel holds it to."""

import subprocess
import sys
import textwrap

PRELUDE = """
import resource

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

def bound(extra):
    "From here on, so many bytes more than are mapped already."
    limit = status("VmSize") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


def run_bounded(program: str, *arguments: str) -> str:
    """What `program` prints. It calls `bound(BYTES)` when what it needs is imported, and dies beyond."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout
