"""A stdio MCP server that does everything a server may do to its caller, and tags all of it with the caller's mark.

`python tests/servers/marked.py [JOURNAL]` appends every line it reads to the file JOURNAL, if one is given.
Standard library only, so that a child starts fast. Each call runs in a thread of its own, so calls overlap.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

Params = dict[str, Any]
COMMAND = (sys.executable, "-S", "-E", __file__)
PATIENCE_S = 20.0  # how long it waits for a client's answer


class Server:
    """Reads lines, writes lines; one lock keeps lines whole."""

    def __init__(self, journal: str | None) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._asked: dict[str, Callable[[Params], None]] = {}
        self._questions = 0
        self._kept = ""
        self._level = ""
        self._watched: set[str] = set()

    # -- the wire -----------------------------------------------------------------------------------------

    def write(self, message: Params) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")) + "\n"
        with self._lock:
            try:
                sys.stdout.write(line)
                sys.stdout.flush()
            except BrokenPipeError:
                os._exit(0)

    def ask(self, method: str, params: Params) -> Params:
        """A request to the client; returns its whole response."""
        box: list[Params] = []
        done = threading.Event()

        def answered(response: Params) -> None:
            box.append(response)
            done.set()

        with self._lock:
            self._questions += 1
            number = f"q{self._questions}"
            self._asked[number] = answered
        self.write({"id": number, "method": method, "params": params})
        return box[0] if done.wait(PATIENCE_S) else {"error": {"message": "nobody answered"}}

    def run(self) -> None:
        for line in sys.stdin:
            if self._journal is not None:
                with open(self._journal, "a") as journal:
                    journal.write(line)
            message = json.loads(line)
            if "method" not in message:
                answered = self._asked.pop(message["id"], None)
                if answered is not None:
                    answered(message)
            elif "id" in message:
                threading.Thread(target=self.handle, args=[message], daemon=True).start()

    # -- what it can do -----------------------------------------------------------------------------------

    def handle(self, message: Params) -> None:
        params = message.get("params") or {}
        try:
            result = self.answer(message["method"], params)
        except (KeyError, AttributeError, TypeError) as error:
            refusal = {"code": -32602, "message": f"missing or unknown: {error}"}
            self.write({"id": message["id"], "error": refusal})
            return
        if result is not None:
            self.write({"id": message["id"], "result": result})

    def answer(self, method: str, params: Params) -> Params | None:
        if method == "initialize":
            everything: Params = {"listChanged": True}
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": everything, "logging": {}, "resources": {"subscribe": True}},
                "serverInfo": {"name": "marked", "version": "1"},
            }
        if method == "tools/call":
            arguments = params.get("arguments") or {}
            token = params.get("_meta", {}).get("progressToken")
            text = getattr(self, f"tool_{params['name']}")(token, **arguments)
            return None if text is None else {"content": [{"type": "text", "text": text}]}
        if method == "resources/subscribe":
            self._watched.add(params["uri"])
        elif method == "resources/unsubscribe":
            self._watched.discard(params["uri"])
        elif method == "logging/setLevel":
            self._level = params["level"]
        elif method != "ping":
            raise KeyError(method)
        return {}

    def tool_talk(self, token: Any, mark: str, ask: Sequence[str] = (), steps: int = 3) -> str:
        """Progress, logs, then each question in `ask`; returns what it heard, all of it with the caller's mark."""
        for step in range(1, steps + 1):
            if token is not None:
                step_of = {"progressToken": token, "progress": step, "message": mark}
                self.write({"method": "notifications/progress", "params": step_of})
            self.write({"method": "notifications/message", "params": {"level": "info", "data": mark}})
        heard = [self.question(kind, mark) for kind in ask]
        return json.dumps({"mark": mark, "heard": heard})

    def question(self, kind: str, mark: str) -> Any:
        if kind == "sample":
            said = {"role": "user", "content": {"type": "text", "text": mark}}
            response = self.ask("sampling/createMessage", {"messages": [said], "maxTokens": 5})
            return response["result"]["content"]["text"] if "result" in response else response["error"]
        if kind == "elicit":
            schema = {"type": "object", "properties": {"mark": {"type": "string"}}}
            response = self.ask("elicitation/create", {"message": mark, "requestedSchema": schema})
            return response["result"]["content"]["mark"] if "result" in response else response["error"]
        response = self.ask("roots/list", {"_meta": {"mark": mark}})
        return response["result"]["roots"][0]["name"] if "result" in response else response["error"]

    def tool_remember(self, token: Any, text: str) -> str:
        self._kept = text
        return "kept"

    def tool_recall(self, token: Any) -> str:
        return self._kept

    def tool_state(self, token: Any) -> str:
        """Everything of this process that a client has set, and which process it is."""
        state = {"pid": os.getpid(), "level": self._level, "watched": sorted(self._watched)}
        return json.dumps(state)

    def tool_touch(self, token: Any, uri: str) -> str:
        if uri in self._watched:
            self.write({"method": "notifications/resources/updated", "params": {"uri": uri}})
        return "touched"

    def tool_change(self, token: Any, what: str) -> str:
        self.write({"method": f"notifications/{what}/list_changed"})
        return "changed"

    def tool_later(self, token: Any, text: str, times: int = 1) -> str:
        """Answers first, then sends log messages that belong to no call."""

        def speak() -> None:
            for number in range(times):
                self.write(
                    {
                        "method": "notifications/message",
                        "params": {"level": "info", "data": f"{text}{number}"},
                    }
                )

        threading.Timer(0.02, speak).start()
        return "later"

    def tool_flood(self, token: Any, messages: int, size: int) -> str:
        for number in range(messages):
            data = f"{number}:" + "x" * size
            self.write({"method": "notifications/message", "params": {"level": "info", "data": data}})
        return "flooded"

    def tool_drip(self, token: Any, steps: int, every_ms: int) -> str:
        """Progress at a steady pace, then the answer."""
        for step in range(1, steps + 1):
            time.sleep(every_ms / 1000)
            self.write(
                {"method": "notifications/progress", "params": {"progressToken": token, "progress": step}}
            )
        return "dripped"

    def tool_echo(self, token: Any, text: str) -> str:
        return text

    def tool_make(self, token: Any, size: int) -> str:
        return "x" * size

    def tool_sleep(self, token: Any, seconds: float) -> str:
        time.sleep(seconds)
        return "awake"

    def tool_hang(self, token: Any) -> None:
        return None

    def tool_start(self, token: Any) -> None:
        """One progress message, then nothing for ever."""
        self.write({"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})

    def tool_babble(self, token: Any, every_ms: int) -> str:
        """Lines that are no messages, for ever."""
        while True:
            with self._lock:
                sys.stdout.write("still computing...\n")
                sys.stdout.flush()
            time.sleep(every_ms / 1000)

    def tool_exit(self, token: Any, code: int, words: str) -> None:
        sys.stderr.write(words + "\n")
        sys.stderr.flush()
        os._exit(code)

    def tool_raw(self, token: Any, line: str) -> str:
        """Writes a line as it is."""
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        return "written"


if __name__ == "__main__":
    Server(sys.argv[1] if len(sys.argv) > 1 else None).run()
