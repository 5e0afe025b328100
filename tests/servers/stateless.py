"""A server of revision 2026-07-28 over stdio or HTTP, standard library only; each request runs in a thread of its own.

`stateless.py [--journal FILE] [--late SECONDS] [--refuse-initialize] [--port N]`; with a port it prints its URL on stdout.

Tools:
    echo {text}            answers with the text
    pid                    answers with its process id
    request                answers with the request as it came, as JSON: message, and headers where there are any
    progress {steps}       that many `notifications/progress` with the token it was given, then the answer
    log {text}             one `notifications/message`, then the answer
    wait {mark}            answers when the request is cancelled, which nobody sees; writes `waiting MARK` and then
                           `cancelled MARK` into the journal
    ask {rounds}           so many input-required results, each with a new request state, then the answer
    blind                  an input-required result without a state
    sample                 -32021, for it wants the client to sample
    change                 `notifications/tools/list_changed` to each subscription that wants it, then the answer
    where {region, limit}  has parameters that are mirrored in headers
    die                    the process ends
    break_off              one `notifications/message`, then the process ends

The journal has a line for every line that it read, too, and for each subscription: `listening ID`, `left ID`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Say = Callable[[Json], None]
VERSION = "2026-07-28"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
STATUS = {-32601: 404, -32020: 400, -32021: 400, -32022: 400}
PATIENCE_S = 20.0
WHERE = {
    "region": {"type": "string", "x-mcp-header": "Region"},
    "limit": {"type": "integer", "x-mcp-header": "Limit"},
}


def command(*options: str) -> list[str]:
    return [sys.executable, "-I", "-S", __file__, *options]


class RpcError(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error: Json = {"code": code, "message": message}
        if data is not None:
            self.error["data"] = data


class Request:
    """One request under way. `gone` is set when its client has cancelled it."""

    def __init__(self, message: Json, say: Say, headers: dict[str, str] | None = None) -> None:
        self.message, self.say, self.headers = message, say, headers
        self.gone = threading.Event()
        self.queue: queue.Queue[Json | None] = queue.Queue()  # of a subscription

    @property
    def params(self) -> Json:
        params: Json = self.message.get("params") or {}
        return params


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.running: dict[Any, Request] = {}
        self.listening: list[Request] = []

    def note(self, line: str) -> None:
        if self.options.journal:
            with self.lock, open(self.options.journal, "a") as journal:
                journal.write(line + "\n")

    def respond(self, request: Request) -> Json:
        try:
            return {"result": self.result(request)}
        except RpcError as error:
            return {"error": error.error}

    def result(self, request: Request) -> Json:
        method, params = request.message["method"], request.params
        version = params.get("_meta", {}).get("io.modelcontextprotocol/protocolVersion")
        if method == "initialize" and not self.options.refuse_initialize:
            info = {"name": "stateless", "version": "1"}
            return {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
        if version is None and self.options.refuse_initialize:
            raise RpcError(-32601, "this server speaks only 2026-07-28")
        if version not in (None, VERSION):
            raise RpcError(-32022, "no", {"supported": [VERSION], "requested": version})
        if method == "server/discover":
            both = [] if self.options.refuse_initialize else ["2025-11-25"]
            capabilities = {"tools": {"listChanged": True}}
            return {
                "resultType": "complete",
                "supportedVersions": [VERSION, *both],
                "capabilities": capabilities,
            }
        if method == "tools/list":
            schema = {"type": "object", "properties": WHERE}
            return {"resultType": "complete", "tools": [{"name": "where", "inputSchema": schema}]}
        if method == "subscriptions/listen":
            return self.listen(request)
        tool = getattr(self, "tool_" + str(params.get("name")), None)
        if method != "tools/call" or tool is None:
            raise RpcError(-32601, "Method not found")
        return {"resultType": "complete", **tool(request, params.get("arguments") or {})}

    def listen(self, request: Request) -> Json:
        number = request.message["id"]
        meta = {SUBSCRIPTION: number}
        acknowledged = {"_meta": meta, "notifications": request.params.get("notifications", {})}
        with self.lock:
            self.listening.append(request)
        self.note(f"listening {number}")
        request.say({"method": "notifications/subscriptions/acknowledged", "params": acknowledged})
        while (message := request.queue.get()) is not None:
            request.say({**message, "params": {**message.get("params", {}), "_meta": meta}})
        with self.lock:
            self.listening.remove(request)
        self.note(f"left {number}")
        return {"resultType": "complete", "_meta": meta}

    def cancel(self, request: Request) -> None:
        request.gone.set()
        request.queue.put(None)

    # -- tools --------------------------------------------------------------------------------------------

    def tool_echo(self, request: Request, arguments: Json) -> Json:
        return text(str(arguments.get("text", "")))

    tool_where = tool_echo

    def tool_pid(self, request: Request, arguments: Json) -> Json:
        return text(str(os.getpid()))

    def tool_request(self, request: Request, arguments: Json) -> Json:
        return text(json.dumps({"message": request.message, "headers": request.headers}))

    def tool_progress(self, request: Request, arguments: Json) -> Json:
        token = request.params["_meta"]["progressToken"]
        for step in range(int(arguments["steps"])):
            request.say(
                {"method": "notifications/progress", "params": {"progressToken": token, "progress": step + 1}}
            )
        return text("done")

    def tool_log(self, request: Request, arguments: Json) -> Json:
        params = {"level": "info", "data": arguments["text"]}
        request.say({"method": "notifications/message", "params": params})
        return text("logged")

    def tool_wait(self, request: Request, arguments: Json) -> Json:
        self.note(f"waiting {arguments['mark']}")
        if request.gone.wait(PATIENCE_S):
            self.note(f"cancelled {arguments['mark']}")
        return text("waited")

    def tool_ask(self, request: Request, arguments: Json) -> Json:
        done = int((request.params.get("requestState") or "0").split("-")[0])
        if done >= int(arguments["rounds"]):
            return text(json.dumps(request.params.get("inputResponses")))
        state = f"{done + 1}-{time.monotonic_ns()}"
        return {"resultType": "input_required", "inputRequests": {"roots": ROOTS}, "requestState": state}

    def tool_blind(self, request: Request, arguments: Json) -> Json:
        return {"resultType": "input_required", "inputRequests": {"roots": ROOTS}}

    def tool_sample(self, request: Request, arguments: Json) -> Json:
        raise RpcError(-32021, "the client must sample", {"requiredCapabilities": {"sampling": {}}})

    def tool_change(self, request: Request, arguments: Json) -> Json:
        with self.lock:
            wanted = [each for each in self.listening if each.params["notifications"].get("toolsListChanged")]
        for each in wanted:
            each.queue.put({"method": "notifications/tools/list_changed"})
        return text(str(len(wanted)))

    def tool_die(self, request: Request, arguments: Json) -> Json:
        os._exit(3)

    def tool_break_off(self, request: Request, arguments: Json) -> Json:
        self.tool_log(request, {"text": "the last word"})
        time.sleep(0.2)  # so that it is read before the end is seen
        os._exit(3)


ROOTS: Json = {"method": "roots/list", "params": {}}


def text(value: str) -> Json:
    return {"content": [{"type": "text", "text": value}]}


def serve_stdio(server: Server) -> None:
    def say(message: Json) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        with server.lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    def run(request: Request) -> None:
        response = server.respond(request)
        server.running.pop(request.message["id"], None)
        if not request.gone.is_set():
            with contextlib.suppress(BrokenPipeError):
                say({"id": request.message["id"], **response})

    for line in sys.stdin:
        server.note(line.strip())
        message = json.loads(line)
        if message.get("method") == "notifications/cancelled":
            found = server.running.get(message["params"]["requestId"])
            if found is not None:
                server.cancel(found)
        elif "id" in message:
            request = server.running[message["id"]] = Request(message, say)
            threading.Thread(target=run, args=[request], daemon=True).start()


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silence."""

        def do_GET(self) -> None:
            self.send_response(405)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            server.note(body.decode())
            message = json.loads(body)
            if "id" not in message:
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()
                return
            streaming = threading.Lock()
            started = False

            def say(event: Json) -> None:
                nonlocal started
                with streaming:
                    if not started:
                        started = True
                        self.send_response(200)
                        self.send_header("content-type", "text/event-stream")
                        self.send_header("transfer-encoding", "chunked")
                        self.end_headers()
                    data = b"data: " + json.dumps({"jsonrpc": "2.0", **event}).encode() + b"\n\n"
                    with contextlib.suppress(OSError):
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

            names = {key.lower(): value for key, value in self.headers.items()}
            request = Request(message, say, names)
            threading.Thread(target=self.watch, args=[request], daemon=True).start()
            response = {"id": message["id"], **server.respond(request)}
            with contextlib.suppress(OSError):
                if started:
                    say(response)
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    data = json.dumps({"jsonrpc": "2.0", **response}).encode()
                    self.send_response(STATUS.get(response.get("error", {}).get("code"), 200))
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

        def watch(self, request: Request) -> None:
            """Until the client closes its connection: that cancels, and nothing else does."""
            with contextlib.suppress(OSError, ValueError):
                while not request.gone.is_set():
                    ready, _, _ = select.select([self.connection], [], [], 0.05)
                    if ready and not self.connection.recv(1, socket.MSG_PEEK):
                        server.cancel(request)
                    elif ready:
                        return  # the next request

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal")
    parser.add_argument("--late", type=float, default=0.0)
    parser.add_argument("--refuse-initialize", action="store_true")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if sys.platform != "win32":
        signal.alarm(120)  # a test that fails leaves nothing behind
    time.sleep(options.late)
    server = Server(options)
    if options.port is None:
        serve_stdio(server)
        return
    http = ThreadingHTTPServer(("127.0.0.1", options.port), handler(server))
    http.daemon_threads = True
    print(f"http://127.0.0.1:{http.server_address[1]}/mcp", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()
