"""Where a result was measured: enough to tell machines apart, nothing that names one."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

_PACKAGES = ("mcpdiag", "uvloop", "httptools", "msgspec")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, the versions and, in a git checkout, the commit.

    `machine` is the same for two runs on equal hardware and system, and is the name of a folder: kind, architecture,
    cores, and a digest of processor and memory. `dirty` says that the checkout had changes beside `commit`.
    """

    machine: str
    system: str
    cpu: str
    cpus: int
    memory_bytes: int
    python: str
    packages: dict[str, str]
    commit: str = ""
    dirty: bool = False


def here(folder: Path | None = None) -> Environment:
    """This machine; the commit is that of the checkout in `folder` (default: the working directory)."""
    cpu, memory = _cpu(), _memory_bytes()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind = f"{platform.system()}-{platform.machine()}".lower()
    # Rounded, because what a kernel reserves of equal memory differs by a little.
    digest = hashlib.sha256(f"{cpu} {round(memory / 2**30)}".encode()).hexdigest()[:6]
    commit = _git(folder, "rev-parse", "HEAD")
    return Environment(
        machine=f"{kind}-{cpus}cpu-{digest}",
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu,
        cpus=cpus,
        memory_bytes=memory,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        commit=commit,
        dirty=bool(commit and _git(folder, "status", "--porcelain", "--untracked-files=no")),
    )


def own_checkout(folder: Path) -> bool:
    """Whether a folder is the top of mcpdiag's own repository: there results go to benchmarks/results."""
    project = folder / "pyproject.toml"
    try:
        return 'name = "mcpdiag"' in project.read_text() and (folder / "benchmarks").is_dir()
    except (OSError, UnicodeDecodeError):
        return False


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git(folder: Path | None, *words: str) -> str:
    try:
        found = subprocess.run(
            ["git", *words],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        found = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.strip():
            return found.stdout.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 0
