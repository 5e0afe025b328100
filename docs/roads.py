"""Draws the two roads of docs/concepts.md: `python docs/roads.py` writes request-road.svg and sample-road.svg.

The colours are in the pictures, for light and for dark, so that they follow the page without a script.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

SVG = "http://www.w3.org/2000/svg"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
STYLE = f"""
text {{ font: 13px {FONT}; fill: #1f2328; }}
.file {{ font: 11px ui-monospace, 'DejaVu Sans Mono', monospace; fill: #57606a; }}
.note {{ font-size: 12px; fill: #57606a; }}
.box {{ fill: #f6f8fa; stroke: #8c959f; }}
.outside {{ fill: #ffffff; stroke: #8c959f; stroke-dasharray: 4 3; }}
.line {{ stroke: #57606a; fill: none; stroke-width: 1.5; }}
.head {{ fill: #57606a; }}
.queue {{ fill: #c8e1ff; }} .connect {{ fill: #ffe3a8; }} .first {{ fill: #c6efce; }} .rest {{ fill: #e5d5f7; }}
@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3; }}
  .file, .note {{ fill: #a9b3be; }}
  .box {{ fill: #1d232b; stroke: #768390; }}
  .outside {{ fill: #0d1117; stroke: #768390; }}
  .line {{ stroke: #a9b3be; }}
  .head {{ fill: #a9b3be; }}
  .queue {{ fill: #1d4268; }} .connect {{ fill: #5c4510; }} .first {{ fill: #1d4d2b; }} .rest {{ fill: #43305c; }}
}}
"""


class Drawing:
    """Shapes, one after the other; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size, self._title = (width, height), title
        self._shapes: list[str] = []

    def box(
        self, x: int, y: int, width: int, title: str, *below: str, height: int = 52, kind: str = "box"
    ) -> None:
        """A box with its title in the middle and lines below it, in another type if they name a file."""
        self._shapes.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        )
        first = y + height / 2 - 8 * len(below) + 5
        self.text(x + width // 2, first, title, "")
        for number, line in enumerate(below, 1):
            self.text(
                x + width // 2,
                first + 16 * number,
                line,
                "file" if "/" in line or line.endswith(".py") else "note",
            )

    def text(self, x: float, y: float, text: str, kind: str = "note", anchor: str = "middle") -> None:
        self._shapes.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int], both: bool = False) -> None:
        """A line through the points, with a head at its end, or at both."""
        path = " ".join(f"{x},{y}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        self._shapes.append(f'<polyline class="line" points="{path}" marker-end="url(#head)"{start}/>')

    def bar(self, x: int, y: int, width: int, kind: str, title: str, below: str) -> None:
        self._shapes.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="28"/>')
        self.text(x + width // 2, y + 18, title, "")
        self.text(x + width // 2, y + 46, below, "note")

    def svg(self) -> str:
        width, height = self._size
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path class="head" d="M0,1 L10,5 L0,9 z"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="{SVG}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{STYLE}</style>",
                f"<defs>{head}</defs>",
                *self._shapes,
                "</svg>\n",
            ]
        )


def request_road() -> str:
    """From the client to the server: who handles a request, and which phases and limits its time has."""
    draw = Drawing(760, 380, "The road of a request, and the phases of its time")
    draw.box(8, 16, 100, "client", "HTTP, stdio", kind="outside")
    draw.box(148, 16, 150, "endpoint", "proxy/endpoint", "Host, Origin, token", height=70)
    draw.box(338, 16, 150, "exchange", "proxy/forward", "deadline, typed errors", height=70)
    draw.box(528, 16, 224, "upstream", "upstream/stdio", "sessions, ids, streams", height=70)
    draw.box(528, 138, 224, "pool", "pool/pool", "who gets which connection", height=70)
    draw.box(338, 138, 150, "connection", "connection/stdio", "connection/http1", height=70)
    draw.box(188, 138, 110, "server", "process, URL", kind="outside")
    draw.arrow((110, 42), (146, 42), both=True)
    draw.arrow((300, 42), (336, 42), both=True)
    draw.arrow((490, 42), (526, 42), both=True)
    draw.arrow((640, 88), (640, 136), both=True)
    draw.arrow((526, 164), (490, 164), both=True)
    draw.arrow((336, 164), (300, 164), both=True)
    draw.text(8, 258, "total_ms of a call, and the limit of each part:", "", "start")
    for x, width, kind, title, below in (
        (8, 150, "queue", "queue_ms", "acquire_timeout"),
        (158, 180, "connect", "connect_ms", "connect_timeout"),
        (338, 220, "first", "first_ms", "request_timeout"),
        (558, 194, "rest", "rest of the answer", "response_timeout"),
    ):
        draw.bar(x, 272, width, kind, title, below)
    draw.arrow((8, 346), (752, 346), both=True)
    draw.text(380, 368, "deadline: all of it together, and every retry", "")
    return draw.svg()


def sample_road() -> str:
    """From what happens in the proxy to a picture: who keeps it, and the ways out."""
    draw = Drawing(760, 328, "The road of a sample, and the ways to look at it")
    draw.box(8, 16, 190, "events of the core", "hooks.py", "an exchange, a death, ...", height=70)
    draw.box(8, 122, 190, "a look every second", "samples/gauge", "pools, processes", height=70)
    draw.box(248, 69, 190, "recorder", "samples/recorder", "one row each", height=70)
    draw.box(488, 69, 212, "rings", "samples/buffer", "fixed memory, oldest row out", height=70)
    draw.arrow((200, 51), (222, 51), (222, 96), (246, 96))
    draw.arrow((200, 157), (222, 157), (222, 112), (246, 112))
    draw.arrow((440, 104), (486, 104))
    for x, title, file, what in (
        (8, "frames here", "samples/frame", "proxy.recorder"),
        (200, "frames elsewhere", "samples/remote", "mcpdiag.attach(URL)"),
        (392, "frames of yesterday", "samples/capture", "mcpdiag.load(FOLDER)"),
        (584, "metrics, traces", "export/", "Prometheus, OTLP"),
    ):
        draw.box(x, 250, 168, title, file, what, height=70)
        if file != "export/":  # that hears of events by itself, for its numbers never forget
            draw.arrow((594, 141), (594, 222), (x + 84, 222), (x + 84, 248))
    draw.arrow((200, 34), (726, 34), (726, 248))
    return draw.svg()


def main() -> None:
    folder = Path(__file__).parent
    (folder / "request-road.svg").write_text(request_road())
    (folder / "sample-road.svg").write_text(sample_road())


if __name__ == "__main__":
    main()
