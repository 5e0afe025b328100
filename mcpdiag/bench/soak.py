"""Steady load on a proxy, readings of its processes meanwhile, and at the end the verdict: does it leak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

from mcpdiag.bench import verdict
from mcpdiag.bench.columns import Lateness, Measurement
from mcpdiag.bench.readings import Reading
from mcpdiag.bench.sites import Site
from mcpdiag.bench.soaked import Soaked
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.steady_load import Interval, SteadyLoad
from mcpdiag.bench.tally import Tally
from mcpdiag.bench.verdict import RULES, Finding, conclude, decisive, judge, overall
from mcpdiag.bench.vitals import Vitals

LONGEST_EVERY_S: Final = 60.0
SHORTEST_EVERY_S: Final = 0.5
WARMUP_SHARE: Final = 0.1
LATEST: Final = 2.5  # times the length: by then it ends, however few requests there were

_MEMORY: Final = (verdict.BLOCKS.metric, verdict.HEAP.metric, verdict.PRIVATE.metric)
Candidates = Callable[[set[str], float], tuple[tuple[Site, ...], str]]
Read = Callable[[], tuple[Mapping[str, Vitals], float, float]]
"""The vitals by process, the proxy's sessions, and the calls that are under way in it, now."""


def every_of(seconds: float) -> float:
    """How often to read: every minute of an hour, at least 20 times in all, at most twice a second."""
    return min(LONGEST_EVERY_S, max(SHORTEST_EVERY_S, round(seconds / 60, 1)))


class Soak:
    """`run` fills `readings` and `tally`; what is there when it is interrupted is kept.

    Args:
        spec: the load; its `seconds` are those asked for.
        read: reads the processes.
        extend: look at a suspicion over twice the requests.
        candidates: called after a verdict of leak, while the load goes on, with the processes whose memory leaks and
            the requests a second; gives call sites, or why there are none.
        tell: called with words, seconds done and seconds in all.
    """

    def __init__(
        self,
        spec: LoadSpec,
        read: Read,
        *,
        every_s: float,
        extend: bool = True,
        candidates: Candidates | None = None,
        tell: Callable[[str, int, int], None] = lambda words, done, total: None,
    ) -> None:
        self._asked, self._read, self._extend, self._tell = spec, read, extend, tell
        self._candidates = candidates
        self.sites: tuple[Site, ...] = ()
        self.no_sites = ""
        self.every_s = every_s
        self.warmup_s = WARMUP_SHARE * spec.seconds
        self.readings: list[Reading] = []
        self.tally = Tally()
        self.extended = False
        self.first_error = ""
        self.sessions_opened = 0
        self._lateness: list[Lateness] = []
        self._requests = 0
        self._half = 0  # readings at the time asked for, where it went on
        self._first: list[Finding] = []  # what was found then

    def run(self) -> None:
        """Until the time is over; longer if there is a suspicion.

        Raises:
            SessionError: sessions could not be opened.
        """
        asked = self._asked.seconds
        spec = msgspec.structs.replace(self._asked, seconds=LATEST * asked + 10, warmup_s=0.0)
        with SteadyLoad(spec, every_s=self.every_s) as load:
            self._tell(f"opening {spec.clients} sessions", 0, round(asked))
            load.wait_begin()
            for ended in load.intervals():
                self._take(ended)
                if self._over(ended[-1].at_s):
                    break
            if looked := self._look_for_sites():
                self._tell("ending the load", round(asked), round(asked))
            load.stop()
            for ended in load.intervals():  # what was on its way; not what memray has slowed down
                for interval in ended if not looked else ():
                    self._count(interval.measurement)

    def _look_for_sites(self) -> bool:
        leaking = {e.process for e in self.findings() if e.verdict == "leak" and e.metric in _MEMORY}
        if self._candidates is None or not leaking:
            return False
        self._tell("looking for the call sites", 0, 1)
        last = self.readings[-1]
        self.sites, self.no_sites = self._candidates(leaking, last.requests / last.at_s)
        return True

    def _take(self, ended: Sequence[Interval]) -> None:
        """One reading; where reading took longer than an interval, for several of them."""
        tally, interval = Tally(), ended[-1]
        for each in ended:
            tally.add(each.measurement.columns)
            self._count(each.measurement)
            self._lateness.append(each.measurement.report.lateness)
        vitals, sessions, busy = self._read()
        self.readings.append(
            Reading(
                at_s=interval.at_s,
                requests=self._requests,
                vitals=dict(vitals),
                sessions=sessions,
                busy=busy,
                pace=tally.pace(),
                waiting=interval.waiting,
            )
        )
        total = self._asked.seconds * (2 if self.extended else 1)
        words = "is it a leak? twice the requests will tell" if self.extended else "under load"
        self._tell(words, round(min(interval.at_s, total)), round(total))

    def _count(self, measurement: Measurement) -> None:
        self.tally.add(measurement.columns)
        self._requests += len(measurement.columns)
        self.sessions_opened = max(self.sessions_opened, measurement.report.sessions_opened)
        self.first_error = self.first_error or measurement.report.first_error

    def _over(self, at_s: float) -> bool:
        asked = self._asked.seconds
        if self.extended:
            return at_s >= LATEST * asked or self._requests >= 2 * self.readings[self._half - 1].requests
        if at_s < asked - self.every_s / 2:
            return False
        self._first = self._judge(self._after_warmup())
        self.extended = self._extend and any(each.suspected for each in decisive(self._first))
        self._half = len(self.readings)
        return not self.extended

    # -- the verdict -----------------------------------------------------------------------------------------

    def _after_warmup(self) -> int:
        """The first reading that counts."""
        return next((at for at, each in enumerate(self.readings) if each.at_s >= self.warmup_s), 0)

    def _judge(self, start: int) -> list[Finding]:
        return judge_readings(self.readings[start:], connections=self._asked.clients)

    def findings(self) -> list[Finding]:
        """A finding for each metric of each process that could be read."""
        whole = self._judge(self._after_warmup())
        if not self.extended:
            return whole
        return second_look(self._first, whole, self._judge(self._half))

    def soaked(self) -> Soaked:
        """All of it, for a result."""
        found, last = self.findings(), self.readings[-1]
        worst = max(self._lateness, key=lambda each: (each.cpu_share, each.late_p99_ms))
        return Soaked(
            verdict=overall(found),
            findings=tuple(found),
            connections=self._asked.clients,
            session_calls=self._asked.session_calls,
            rate=self._asked.rate if self._asked.loop == "open" else 0.0,
            seconds=self._asked.seconds,
            took_s=round(last.at_s, 3),
            every_s=self.every_s,
            warmup_s=self.warmup_s,
            requests=last.requests,
            failed=self.tally.failed,
            readings=len(self.readings),
            extended=self.extended,
            sessions_opened=self.sessions_opened,
            replaced=_replaced(self.readings),
            lateness=worst,
            rss_ratio=_rss_ratio(self.readings),
            sites=self.sites,
            no_sites=self.no_sites,
        )


def judge_readings(
    readings: list[Reading], rules: tuple[verdict.Rule, ...] = RULES, *, connections: int = 0
) -> list[Finding]:
    """A finding for each metric of each process that could be read.

    Calls under way are memory. So what is said of that rests on the readings with about as many of them as usual; where
    the server did not keep up even then, each of the `connections` had one at one reading, and at another not.
    """
    usual = _usual(readings, connections)
    found = []
    for process in readings[-1].vitals if readings else ():
        processes = readings[-1].vitals[process].processes
        for rule in rules:
            chosen = usual if rule.metric in _MEMORY else readings
            swing = connections if any(each.waiting for each in chosen) else 0
            requests = [float(each.requests) for each in chosen]
            values = [each.value(process, rule.metric) for each in chosen]
            if not all(map(math.isnan, values)):
                found.append(judge(rule, requests, values, process=process, processes=processes, swing=swing))
    return found


def _usual(readings: list[Reading], connections: int) -> list[Reading]:
    busy = [each.busy for each in readings if not math.isnan(each.busy)]
    most = median(busy) + max(5, connections / 50) if busy else math.inf
    found = [each for each in readings if not each.busy > most]
    return found if len(found) >= max(verdict.FEWEST, 2 * len(readings) / 3) else readings


def second_look(first: list[Finding], whole: list[Finding], second: list[Finding]) -> list[Finding]:
    """The findings on twice the requests: those that were suspected at first are concluded.

    Args:
        first: of the readings at first.
        whole: of all.
        second: of those since.
    """
    before = {(each.process, each.metric): each for each in first if each.suspected}
    since = {(each.process, each.metric): each for each in second}
    return [
        conclude(before[key], each, since[key])
        if (key := (each.process, each.metric)) in before and key in since
        else each
        for each in whole
    ]


def _replaced(readings: list[Reading]) -> int:
    pids = [set(each.vitals["server"].pids) for each in readings if "server" in each.vitals]
    return sum(bool(before - after) for before, after in pairwise(pids))


def _rss_ratio(readings: list[Reading]) -> dict[str, float]:
    if not readings or readings[-1].at_s < 119:
        return {}
    minute = next(each for each in readings if each.at_s >= 59.5)
    last = readings[-1]
    return {
        process: round(last.vitals[process].rss_bytes / vitals.rss_bytes, 4)
        for process, vitals in minute.vitals.items()
        if process in last.vitals and vitals.rss_bytes
    }
