"""How many checks of the official conformance suite fail behind a peer. Needs tools/setup-node; half a minute each."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from install import ROOT, MissingError
from peer import Peer, Upstream
from running import running

sys.path.append(str(ROOT / "tools"))
from conformance import NODE, RESULTS, REVISIONS, BrokenRunError, Program, read

REVISION = REVISIONS[0]  # of the handshake era, which every peer speaks


def failures(kind: str, peer: Peer | None) -> int | str:
    """Of the suite on our conformance server, behind a peer or bare; or why there is no number.

    Args:
        kind: `http` or `stdio`, what the peer fronts.
    """
    if not (NODE.exists() and REVISION.suite.exists()):
        return "no suite; run: sh tools/setup-node"
    name = re.sub(r"\W+", "-", f"peers-{kind}-{peer.name if peer else 'direct'}")
    folder = RESULTS / REVISION.name / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            if kind == "stdio":
                # A peer has a working directory of its own, in which the module is not found.
                server = [str(part) for part in REVISION.server]
                upstream = Upstream(command=("env", f"PYTHONPATH={ROOT}", *server, "--stdio"))
            else:
                program = Program("server", (*REVISION.server, "--port", "0"), folder)
                upstream = Upstream(url=stack.enter_context(program).ready_url())
            url = upstream.url if peer is None else stack.enter_context(running(peer, upstream))[0]
            command: list[str | Path] = [NODE, REVISION.suite, "server", "--url", url, *REVISION.scope]
            suite = stack.enter_context(Program("suite", [*command, "--output-dir", folder], folder))
            suite.finish()
    except (BrokenRunError, MissingError) as error:
        return str(error)[:120]
    statuses = Counter(status for results in read(folder, REVISION).values() for status, _ in results)
    if not statuses:
        return "the suite left no results"
    return statuses["FAILURE"]
