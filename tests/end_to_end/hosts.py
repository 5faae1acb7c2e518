"""Not a test: two machines in network namespaces of this one, with their own addresses, cable and ssh server.

The namespaces are joined by one cable and by nothing else, so nothing outside can be reached from them, or reach them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("ip", "ssh", "ssh-keygen", "sshd", "pdsh")
ADDRESSES = ("10.87.0.1", "10.87.0.2")
CABLE = "cable0"
START = 30.0

SSH = """Host *
    IdentityFile {root}/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 3
"""
SSHD = """HostKey {root}/host_key
AuthorizedKeysFile {root}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
ListenAddress {address}
"""


@dataclass(frozen=True)
class Hosts:
    """Two namespaces, the first of which launches.

    Attributes:
        path: A folder with an `ssh` that knows the key, to be first in PATH.
    """

    names: tuple[str, str]
    path: Path

    def inside(self, number: int, *words: str | Path) -> list[str]:
        """A command line that runs on that host."""
        return ["ip", "netns", "exec", self.names[number], *map(str, words)]

    def cable(self, state: str) -> None:
        """Cuts the second host off (`down`), or connects it again (`up`)."""
        run("ip", "-n", self.names[1], "link", "set", CABLE, state)

    def processes(self, number: int) -> list[int]:
        """Of that host, its ssh server included."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.names[number]).split()]


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if lacking := [name for name in NEEDED if not found(name)]:
        return f"{', '.join(lacking)} not installed (apt-get install iproute2 openssh-server pdsh)"
    probe = subprocess.run(["ip", "netns", "add", f"duo-probe-{os.getpid()}"], capture_output=True, text=True)
    if probe.returncode:
        return f"this machine makes no network namespaces: {probe.stderr.strip()}"
    run("ip", "netns", "del", f"duo-probe-{os.getpid()}")
    return None


def found(name: str) -> bool:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])) is not None


@contextlib.contextmanager
def two_hosts(root: Path) -> Iterator[Hosts]:
    """Makes them, and takes them away with all that still runs on them."""
    names = (f"duo-{os.getpid()}-a", f"duo-{os.getpid()}-b")
    hosts, servers = Hosts(names, root / "bin"), []
    _keys(root)
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                run("ip", "-n", name, "link", "set", device, "up")
        servers = [_server(hosts, number, root) for number in range(2)]
        _wait_for_servers(hosts)
        yield hosts
    finally:
        _take_away(hosts, servers)


def _keys(root: Path) -> None:
    """A throw-away key for logging in and one for the servers, and an `ssh` that uses them."""
    for name in ("key", "host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name))
    (root / "ssh_config").write_text(SSH.format(root=root))
    (root / "bin").mkdir()
    (root / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {root}/ssh_config "$@"\n')
    (root / "bin" / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # where the server locks itself in; it starts without it no more


def _server(hosts: Hosts, number: int, root: Path) -> subprocess.Popen[bytes]:
    file = root / f"sshd_config_{number}"
    file.write_text(SSHD.format(root=root, address=ADDRESSES[number]))
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
    with (root / f"sshd_{number}.log").open("wb") as log:
        return subprocess.Popen(hosts.inside(number, str(sshd), "-D", "-e", "-f", file), stdout=log, stderr=log)


def _wait_for_servers(hosts: Hosts) -> None:
    deadline = time.monotonic() + START
    for address in ADDRESSES:
        while subprocess.run(hosts.inside(0, hosts.path / "ssh", address, "true"), capture_output=True).returncode:
            assert time.monotonic() < deadline, f"the ssh server of {address} did not start"
            time.sleep(0.1)


def _take_away(hosts: Hosts, servers: list[subprocess.Popen[bytes]]) -> None:
    for number in range(2):
        with contextlib.suppress(subprocess.CalledProcessError):
            for pid in hosts.processes(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for server in servers:
        server.wait()
    for name in hosts.names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
