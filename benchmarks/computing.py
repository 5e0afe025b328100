"""A stdio server whose calls cost processor time, or only time, one call at a time; for compare_power.py.

python computing.py STEPS | python computing.py MILLISECONDSms
"""

import os
import re
import sys
import time

ID = re.compile(rb'"id": ?(\d+)')
RESULT = b'{"content":[{"type":"text","text":"hello"}]}'
SCHEMA = b'{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}'
TOOLS = b'{"tools":[{"name":"echo","inputSchema":%b}]}' % SCHEMA
INITIALIZED = b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"computing","version":"1"}}'


def compute(steps: int) -> int:
    """What takes the time."""
    total = 0
    for step in range(steps):
        total += step & 7
    return total


def work(amount: str) -> None:
    if amount.endswith("ms"):
        time.sleep(float(amount[:-2]) / 1e3)
    else:
        compute(int(amount))


def answer(line: bytes, amount: str) -> bytes:
    if b'"tools/call"' in line:
        work(amount)
        # The text comes back, so that mcpdiag can tell whose answer it is.
        text = re.search(rb'"text": ?("[^"\\]*")', line)
        return RESULT.replace(b'"hello"', text[1]) if text else RESULT
    if b'"tools/list"' in line:
        return TOOLS
    return INITIALIZED if b'"initialize"' in line else b"{}"


def main() -> None:
    amount = sys.argv[1]
    rest = b""
    while data := os.read(0, 1 << 18):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if found := ID.search(line):
                os.write(1, b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (found[1], answer(line, amount)))


if __name__ == "__main__":
    main()
