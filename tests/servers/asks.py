"""A server that talks back: it asks its client, logs, and reports progress. Calls run one after the other.

Tools:
    sample {text}          asks `sampling/createMessage` with that text; answers with what the client said
    ask_and_answer {text}  asks the same, but answers at once and prints the client's response on stderr
    take_back              asks, takes the question back with `notifications/cancelled`, then answers
    log {text}             one `notifications/message`, then the answer
    log_late {text}        the answer, then the log message
    progress {steps}       that many `notifications/progress` with the token it was given, then the answer
    token                  answers with the progress token that it was given, as JSON
    list_changed           `notifications/tools/list_changed`, then the answer
    params                 answers with the whole request as JSON, as it came
    spam {count, bytes}    so many log messages of that length, then the answer
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.servers.mini import Params, Server, messages, send, text, write


def token_of(message: Params) -> Any:
    return message["params"].get("_meta", {}).get("progressToken")


def log(data: str) -> None:
    send({"method": "notifications/message", "params": {"level": "info", "data": data}})


class Asking(Server):
    def __init__(self) -> None:
        super().__init__()
        self.questions = 0
        self.incoming: Iterator[Params] = messages()
        self.tools |= {
            "sample": self.sample,
            "ask_and_answer": self.ask_and_answer,
            "take_back": self.take_back,
            "log": self.log,
            "log_late": self.log_late,
            "progress": self.progress,
            "token": lambda message, arguments: text(json.dumps(token_of(message))),
            "list_changed": self.list_changed,
            "params": lambda message, arguments: text(json.dumps(message)),
            "spam": self.spam,
        }

    def ask(self, said: str) -> str:
        self.questions += 1
        asked = f"question-{self.questions}"
        content = {"role": "user", "content": {"type": "text", "text": said}}
        params = {"messages": [content], "maxTokens": 10}
        send({"id": asked, "method": "sampling/createMessage", "params": params})
        return asked

    def response(self, asked: str) -> str:
        for message in self.incoming:
            if message.get("id") == asked and "method" not in message:
                return json.dumps(message.get("result", message.get("error")))
            self.answer(message)
        return ""

    def sample(self, message: Params, arguments: Params) -> Params:
        return text(self.response(self.ask(arguments["text"])))

    def ask_and_answer(self, message: Params, arguments: Params) -> None:
        asked = self.ask(arguments["text"])
        send({"id": message["id"], "result": text("asked")})
        write(self.response(asked).encode() + b"\n", 2)

    def take_back(self, message: Params, arguments: Params) -> Params:
        asked = self.ask("never mind")
        send({"method": "notifications/cancelled", "params": {"requestId": asked, "reason": "never mind"}})
        return text("taken back")

    def log(self, message: Params, arguments: Params) -> Params:
        log(arguments["text"])
        return text("logged")

    def log_late(self, message: Params, arguments: Params) -> None:
        send({"id": message["id"], "result": text("answered")})
        log(arguments["text"])

    def progress(self, message: Params, arguments: Params) -> Params:
        token = token_of(message)
        for step in range(int(arguments["steps"])):
            params = {"progressToken": token, "progress": step + 1, "message": f"step {step + 1}"}
            send({"method": "notifications/progress", "params": params})
        return text("done")

    def list_changed(self, message: Params, arguments: Params) -> Params:
        send({"method": "notifications/tools/list_changed"})
        return text("changed")

    def spam(self, message: Params, arguments: Params) -> Params:
        for _ in range(int(arguments["count"])):
            log("s" * int(arguments["bytes"]))
        return text("spammed")

    def serve(self) -> None:
        for message in self.incoming:
            self.answer(message)


if __name__ == "__main__":
    Asking().serve()
