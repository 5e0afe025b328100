"""SIGTERM is Ctrl-C, wherever it comes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from mcpdiag.bench.generate import run_loop
from mcpdiag.cli.terminated import terminated_is_interrupted


class Terminates(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_it_is_not_lost_in_a_callback_of_the_event_loop() -> None:
    """uvloop logs what a protocol raises, and goes on."""
    before = signal.getsignal(signal.SIGTERM)

    async def wait() -> None:
        near, far = socket.socketpair()
        with far:
            transport, _ = await asyncio.get_running_loop().create_connection(Terminates, sock=near)
            far.send(b"x")
            try:
                await asyncio.sleep(5)
            finally:
                transport.close()

    with pytest.raises(KeyboardInterrupt), terminated_is_interrupted():
        run_loop(wait())
    assert signal.getsignal(signal.SIGTERM) == before
