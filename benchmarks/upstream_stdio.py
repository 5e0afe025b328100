"""The cheapest stdio server there can be: answers every request with the same result. Only the proxy is measured."""

import os
import re

ID = re.compile(rb'"id": ?(\d+)')
RESULT = b'{"content":[{"type":"text","text":"hello"}]}'
INITIALIZED = b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}'


def main() -> None:
    rest = b""
    while data := os.read(0, 1 << 18):
        *lines, rest = (rest + data).split(b"\n")
        out = []
        for line in lines:
            if found := ID.search(line):
                result = INITIALIZED if b'"initialize"' in line else RESULT
                out.append(b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (found[1], result))
        if out:
            os.write(1, b"".join(out))


main()
