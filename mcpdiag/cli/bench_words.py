"""What `--explain` prints: the method in words. docs/bench.md says the same at length."""

METHOD = """\
What `mcpdiag bench run` does
1. It starts a proxy in front of the server and asks for `tools/list`. The load is an echo-like tool with one string
   argument if there is one, else `tools/list` itself; no argument is guessed, and a tool with destructiveHint is only
   called if a workload names it. Each call is tried once; if all fail, it stops (exit 3).
2. In each round it starts one proxy for each pool, {transport} x {reuse on, off}, all with the same number of
   connections. Reuse is switched off by a lifetime of a millisecond: each exchange gets a process or a connection of
   its own. The two of a pair run one after the other, and in every other round in the other order.
3. The load comes from a process of its own: so many clients, each of which calls again when it has its answer (a
   closed loop). Latency counts from when a call was due. Calls due during warm-up do not count; a call that fails is
   kept and labelled; the calls on their way at the end are waited for.
4. The generator measures how late it was itself. If that or its processor may have set the pace, the result says so.
5. Ratios are medians over the rounds, with a 95 % bootstrap interval widened for few rounds (Hesterberg 2015).
6. Two marked clients use each pool at once in every round; if a mark reaches the other one, it exits with 1.
RSS is the highest resident memory of the proxy, and of its children together, during a run."""

COMPARE = """\
What `mcpdiag bench compare` does
1. It refuses results of different machines, workloads, targets or pool settings (--force overrules that).
2. For every metric of every cell: the ratio of the medians of the repetitions, new over base, with a 95 % bootstrap
   interval widened for few repetitions (Hesterberg 2015).
3. Whether that is more than noise: the repetitions of both are dealt out anew in every way, and the largest
   studentized difference anywhere is compared with the one found (maxT, Westfall and Young 1993). So the rate of
   false alarms, 1 %, is of all comparisons together. With fewer than 5 repetitions in each nothing can be significant.
4. What other processes took of the processors meanwhile (Linux) may have made a result slower by that: a difference is
   significant only if that cannot explain it, and the intervals are wider by it.
5. --max-regression fails only if the whole interval is beyond the limit.
It cannot know what else changed between the two runs: `mcpdiag bench duet` measures both in one.
Of a duet's result alone it compares the two sides (`mcpdiag bench duet --explain`)."""
