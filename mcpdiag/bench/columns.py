"""The raw samples of a run as columns of machine numbers, and their form on a pipe or in a file.

The form, little endian: `MCPB1\\n`, 4 bytes length of a header, the header as JSON (`Report`), then the columns
`intended_ns`, `sent_ns`, `done_ns` (int64, from the start of the measured time), `call` (uint16), `outcome` (uint8).
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

import msgspec

OUTCOMES: Final = (
    "ok", "tool_error", "rpc_error", "http_error", "closed", "timeout", "protocol", "connect", "not_sent",
)  # fmt: skip
OK, TOOL_ERROR, RPC_ERROR, HTTP_ERROR, CLOSED, TIMEOUT, PROTOCOL, CONNECT, NOT_SENT = range(len(OUTCOMES))
NEVER: Final = -(1 << 62)
"""`sent_ns` of a call that was never sent."""
MAGIC: Final = b"MCPB1\n"
_COLUMNS: Final = (("intended_ns", "q"), ("sent_ns", "q"), ("done_ns", "q"), ("call", "H"), ("outcome", "B"))


class Lateness(msgspec.Struct, frozen=True, kw_only=True):
    """How well the generator kept up with what it was to do.

    `cpu_share` is the part of the measured time that its one core was busy. `lag_*` is how late its event loop
    came to a timer of 10 ms; `late_*` how late an open loop's calls were taken up, whether a client was free or not.
    """

    cpu_share: float = 0.0
    lag_p99_ms: float = 0.0
    lag_max_ms: float = 0.0
    late_p99_ms: float = 0.0
    late_max_ms: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the generator says beside its samples."""

    samples: int = 0
    window_ns: int = 0
    calls: tuple[str, ...] = ()
    sessions_opened: int = 0
    first_error: str = ""
    lateness: Lateness = Lateness()


class Columns:
    """Samples by column, room for them made beforehand. One row a call, in the order in which they ended."""

    __slots__ = ("call", "done_ns", "intended_ns", "length", "outcome", "sent_ns")

    def __init__(self, room: int = 0) -> None:
        self.length = 0
        for name, code in _COLUMNS:
            width = array(code).itemsize
            setattr(self, name, array(code, bytes(width * room)))

    intended_ns: array[int]
    sent_ns: array[int]
    done_ns: array[int]
    call: array[int]
    outcome: array[int]

    def add(self, intended_ns: int, sent_ns: int, done_ns: int, call: int, outcome: int) -> None:
        """One more sample; more room is made when there is none."""
        at = self.length
        if at == len(self.outcome):
            self._grow()
        self.intended_ns[at] = intended_ns
        self.sent_ns[at] = sent_ns
        self.done_ns[at] = done_ns
        self.call[at] = call
        self.outcome[at] = outcome
        self.length = at + 1

    def _grow(self) -> None:
        more = max(1024, self.length)
        for name, _ in _COLUMNS:
            column: array[int] = getattr(self, name)
            column.frombytes(bytes(column.itemsize * more))

    def __len__(self) -> int:
        return self.length


class Measurement(msgspec.Struct, frozen=True):
    """A run's report and samples."""

    report: Report
    columns: Columns


def encode(measurement: Measurement) -> bytes:
    """The bytes of a measurement."""
    columns, count = measurement.columns, len(measurement.columns)
    header = msgspec.json.encode(msgspec.structs.replace(measurement.report, samples=count))
    parts = [MAGIC, len(header).to_bytes(4, "little"), header]
    for name, _ in _COLUMNS:
        column: array[int] = getattr(columns, name)[:count]
        parts.append(_little(column).tobytes())
    return b"".join(parts)


def decode(data: bytes) -> Measurement:
    """The measurement of these bytes.

    Raises:
        ValueError: they are none, or cut short.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("this is no measurement of mcpdiag's load generator")
    at = len(MAGIC) + 4
    size = int.from_bytes(data[len(MAGIC) : at], "little")
    try:
        report = msgspec.json.decode(data[at : at + size], type=Report)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the header of a measurement is damaged: {error}") from None
    at += size
    columns = Columns()
    columns.length = report.samples
    for name, code in _COLUMNS:
        column = array(code)
        end = at + column.itemsize * report.samples
        if end > len(data):
            raise ValueError("a measurement is cut short")
        column.frombytes(data[at:end])
        setattr(columns, name, _little(column))
        at = end
    return Measurement(report, columns)


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column
