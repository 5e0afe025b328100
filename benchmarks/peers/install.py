"""Where each peer comes from and where it is: an environment of its own below .tools/peers, which git ignores."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".tools" / "peers"
OWN_NODE = ROOT / ".tools" / "node" / "bin" / "node"  # of tools/setup-node; else the machine's
INSTALL_S = 600.0


class MissingError(Exception):
    """A peer is not there; the message says why and what makes it be there."""


@dataclass(frozen=True)
class Source:
    """A peer's key, which names its folder, and its package in one registry."""

    key: str
    pip: str = ""
    npm: str = ""
    apt: str = ""

    @property
    def folder(self) -> Path:
        return FOLDER / self.key


# What to run of each, below its folder. `*` is a version of Python.
_BINARIES = {
    "envoy": "lib/python*/site-packages/envoy/_bin/envoy",
    "fastmcp": "bin/fastmcp",
    "sparfenyuk": "bin/mcp-proxy",
    "punkpeye": "node_modules/mcp-proxy/dist/bin/mcp-proxy.mjs",
    "supergateway": "node_modules/supergateway/dist/index.js",
}


def binary(key: str) -> Path:
    """The program of a peer.

    Raises:
        MissingError: it is not installed, or its installation has failed, with the reason.
    """
    if key == "nginx":
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if found is None:
            raise MissingError("not installed; on Debian: apt-get install nginx-light")
        return Path(found)
    reason = FOLDER / f"{key}.failed"
    files = sorted((FOLDER / key).glob(_BINARIES[key]))
    if files:
        return files[0]
    if reason.exists():
        raise MissingError(f"could not be installed: {reason.read_text().strip()}")
    raise MissingError("not installed; run: python benchmarks/peers --install")


def node() -> str:
    """A Node to run the npm ones with.

    Raises:
        MissingError: there is none.
    """
    found = str(OWN_NODE) if OWN_NODE.exists() else shutil.which("node")
    if found is None:
        raise MissingError("needs Node 20 or later; run: sh tools/setup-node")
    return found


def install(source: Source) -> str:
    """Make the environment of a peer anew; returns why that failed, or ""."""
    shutil.rmtree(source.folder, ignore_errors=True)
    source.folder.mkdir(parents=True)
    reason = FOLDER / f"{source.key}.failed"
    reason.unlink(missing_ok=True)
    problem = ""
    for command in _commands(source):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = f"{command[0]}: {error}"
            break
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            # Neither the registry's host nor a path of this machine belongs into a table.
            last = re.sub(r"(https?|file)://\S+|/\S+/", "", said[-1] if said else "it said nothing")
            problem = f"{Path(command[0]).name} ended with {done.returncode}: {last[:120]}"
            break
    if problem:
        reason.write_text(problem + "\n")
        shutil.rmtree(source.folder, ignore_errors=True)
    return problem


def _commands(source: Source) -> list[list[str]]:
    folder = str(source.folder)
    if source.pip:
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        return [[sys.executable, "-m", "venv", folder], [*pip, source.pip]]
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    return [["npm", "install", "--prefix", folder, *quiet, source.npm]]


def version(source: Source) -> str:
    """Of what is installed; "" if it cannot be told."""
    if source.key == "mcpdiag":
        return metadata.version("mcpdiag")
    if source.key == "nginx":
        try:
            said = subprocess.run([binary("nginx"), "-v"], capture_output=True, text=True, check=False).stderr
        except MissingError:
            return ""
        return said.rpartition("/")[2].split()[0] if "/" in said else ""
    if source.npm:
        file = source.folder / "node_modules" / source.npm / "package.json"
        return str(json.loads(file.read_text())["version"]) if file.exists() else ""
    name = source.pip.replace("-", "_")
    found = sorted(source.folder.glob(f"lib/python*/site-packages/{name}-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else ""
