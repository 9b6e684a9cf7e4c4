"""Facts about the machine that a measurement was made on, and what its kernel holds for sockets."""

import os
import platform
from pathlib import Path

# The kernel's objects for a TCP socket: struct sock, its inode, and its place in epoll sets.
_OWN_SLABS = frozenset({"TCP", "TCPv6", "sock_inode_cache", "eventpoll_epi", "eventpoll_pwq"})
# Each has one of these as well, but so has every other file: they are counted with the inodes of sockets.
_SHARED_SLABS = frozenset({"filp", "dentry"})
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def describe_machine() -> dict[str, object]:
    """Returns what a reader needs to judge the figures: nothing that names the machine itself."""
    memory = _read_fields("/proc/meminfo").get("MemTotal", "0 kB")
    return {
        "cores": os.cpu_count(),
        "processor": _read_fields("/proc/cpuinfo").get("model name", platform.machine()),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _read_fields(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_load() -> float:
    """Returns how many processes wanted a core over the last minute: 0 is a machine left alone."""
    return os.getloadavg()[0]


def read_queued_bytes() -> int:
    """Returns what all TCP sockets of this machine hold in their queues (``mem`` of /proc/net/sockstat, in pages)."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1]) * _PAGE_BYTES
    return 0


def read_socket_bytes() -> int | None:
    """Returns what the kernel's objects for sockets take, queues not included; None where that may not be read."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:  # only root may
        return None
    slabs = {name: (int(active), int(size)) for name, active, _, size in (line.split()[:4] for line in lines)}
    sockets = slabs.get("sock_inode_cache", (0, 0))[0]
    own = sum(active * size for name, (active, size) in slabs.items() if name in _OWN_SLABS)
    return own + sum(sockets * size for name, (_, size) in slabs.items() if name in _SHARED_SLABS)


def read_kernel_bytes() -> int | None:
    """Returns what the kernel holds for all TCP sockets: objects and queues."""
    objects = read_socket_bytes()
    return None if objects is None else objects + read_queued_bytes()
