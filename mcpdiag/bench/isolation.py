"""Does what one client causes reach another? Two marked clients through the same pool, every byte looked at.

Each mark is in its client's request ids, progress tokens and, with an echo tool, arguments. Both clients also listen
on their own streams. The other's mark anywhere, or an answer without one's own, is cross-talk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from mcpdiag.bench import wire
from mcpdiag.bench.client import HttpSession, Link
from mcpdiag.bench.columns import PROTOCOL
from mcpdiag.bench.discover import Tool
from mcpdiag.bench.generate import run_loop
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.workload import Workload, echo_argument

MARKS: Final = ("alpha-5d1c", "omega-9b7e")
WORKERS: Final = 4  # calls of one client at once
SHOWN: Final = 200
Verdict = Literal["isolated", "cross-talk", "inconclusive"]


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """What two clients saw of each other. `evidence` is the first foreign message, or why there is no verdict.

    `by` says what was marked: `arguments` (an echo tool gave the marks back) or only the request `ids`.
    """

    verdict: Verdict
    exchanges: int
    foreign: int = 0
    by: Literal["arguments", "ids"] = "ids"
    evidence: str = ""


class _Caller(HttpSession):
    """A connection of one marked client; all of them share its session."""

    def __init__(self, witness: _Witness, spec: LoadSpec, digit: int) -> None:
        super().__init__(
            spec.url, headers=spec.headers, era=spec.era, version=spec.protocol, timeout_s=spec.timeout_s
        )
        self._witness = witness
        self.number = digit * wire.FIRST_ID  # ids have ten digits; the first one tells who asked

    def message(self, data: bytes) -> None:
        self._witness.hear(data)
        super().message(data)


class _Witness:
    """One client: its mark, and what it has heard."""

    def __init__(self, mark: str, foreign: str, spec: LoadSpec, digit: int) -> None:
        self.mark, self._foreign = mark, foreign.encode()
        self.callers = [_Caller(self, spec, digit + number) for number in range(WORKERS)]
        self.exchanges = self.foreign = 0
        self.evidence = self.error = ""
        self.stream: Link | None = None

    def hear(self, data: bytes) -> None:
        if self._foreign in data:
            self.convict(data)

    def convict(self, data: bytes) -> None:
        self.foreign += 1
        self.evidence = self.evidence or f"{self.mark} received {data[:SHOWN].decode(errors='replace')}"

    async def open(self) -> None:
        first, *others = self.callers
        await first.open()
        for each in others:
            await each.connect()
            each.session_id = first.session_id
        if first.session_id:
            self.stream = await first.listen(self.hear)

    async def call_until(self, call: Call, argument: str, end: float) -> None:
        loop = asyncio.get_running_loop()

        async def work(caller: _Caller, worker: int) -> None:
            number = 0
            while loop.time() < end:
                number += 1
                tag = f"{self.mark}-{worker}-{number}"
                try:
                    if not caller.usable:
                        await caller.connect()
                    result = await caller.request(call.method, _marked(call, argument, tag), call.headers)
                except SessionError as error:
                    self.error = self.error or str(error)
                    if caller.outcome == PROTOCOL:  # an answer to somebody else's request
                        self.convict(str(error).encode())
                    await asyncio.sleep(0.01)
                    continue
                self.exchanges += 1
                if argument and tag.encode() not in result:
                    self.convict(result)

        await asyncio.gather(*(work(caller, number) for number, caller in enumerate(self.callers)))

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.drop()
        first, *others = self.callers
        for each in others:
            each.session_id = b""  # the first one ends the session
        await asyncio.gather(*(each.close() for each in (*others, first)))


def _marked(call: Call, argument: str, tag: str) -> Mapping[str, Any]:
    params = {**call.params, "_meta": {"progressToken": tag}}
    if argument:
        params["arguments"] = {**call.params["arguments"], argument: tag}
    return params


def probe(tools: Sequence[Tool], workload: Workload) -> tuple[Call, str]:
    """The call that the two clients make, and which argument takes the mark; none if the server has no echo tool."""
    for tool in tools:
        argument = echo_argument(tool)
        if argument is not None and not tool.mirrored({argument: ""}):
            return Call(
                method="tools/call", params={"name": tool.name, "arguments": {argument: ""}}
            ), argument
    return workload.calls[0], ""


def check(spec: LoadSpec, call: Call, argument: str, seconds: float) -> Isolation:
    """Two clients at the spec's URL, `WORKERS` calls of each at once, for some seconds."""
    return run_loop(_check(spec, call, argument, seconds))


async def _check(spec: LoadSpec, call: Call, argument: str, seconds: float) -> Isolation:
    one, other = MARKS
    witnesses = [_Witness(one, other, spec, 1), _Witness(other, one, spec, 5)]
    try:
        for each in witnesses:
            await each.open()
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(each.call_until(call, argument, end) for each in witnesses))
    except SessionError as error:
        return Isolation(verdict="inconclusive", exchanges=0, evidence=str(error))
    finally:
        await asyncio.gather(*(each.close() for each in witnesses))
    exchanges, foreign = (sum(getattr(w, name) for w in witnesses) for name in ("exchanges", "foreign"))
    spoke = all(each.exchanges for each in witnesses)
    verdict: Verdict = "cross-talk" if foreign else "isolated" if spoke else "inconclusive"
    evidence = next((each.evidence for each in witnesses if each.evidence), "")
    return Isolation(
        verdict=verdict,
        exchanges=exchanges,
        foreign=foreign,
        by="arguments" if argument else "ids",
        evidence=evidence or ("" if spoke else next((each.error for each in witnesses if each.error), "")),
    )


def together(verdicts: Sequence[Isolation]) -> Isolation:
    """One verdict of several: the worst, with all exchanges."""
    worst = min(verdicts, key=lambda each: ("cross-talk", "inconclusive", "isolated").index(each.verdict))
    return msgspec.structs.replace(
        worst,
        exchanges=sum(each.exchanges for each in verdicts),
        foreign=sum(each.foreign for each in verdicts),
    )
