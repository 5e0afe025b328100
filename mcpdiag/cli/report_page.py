"""An executed notebook as one HTML file that asks nothing of the network, for `mcpdiag report`."""

from __future__ import annotations

import os
import re
import tempfile
from html import escape
from pathlib import Path
from typing import Any, Final

from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from mcpdiag.errors import ConfigError

NOT_SHOWN: Final = "not-in-report"  # the tag of cells that are about the notebook itself
# The page may show pictures that are inside it and its own style, and nothing else: what a capture is called, or the
# tools in it, cannot become a script.
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2733; --faint: #5d6d7e; --line: #d5dbdb; --even: #f4f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181d; --ink: #e5e8eb; --faint: #9aa7b3; --line: #37424d; --even: #1d232a; }
}
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 60rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: 0.5rem 0; max-width: 46rem; }
a { color: inherit; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.875rem; }
pre { margin: 0.5rem 0; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
.output_area, .input { overflow-x: auto; }
.output_stream pre { padding: 0.6rem 0.8rem; background: var(--even); border-radius: 4px; }
.input { padding: 0.2rem 0.8rem; border: 1px solid var(--line); border-radius: 4px; margin-top: 0.75rem; }
.prompt:empty { display: none; }
img { display: block; max-width: 100%; height: auto; box-sizing: border-box; margin: 0.75rem 0; padding: 0.5rem;
  background: #fff; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; margin: 0.75rem 0; font-size: 0.8125rem; font-variant-numeric: tabular-nums; }
table.dataframe { border: 0; }
td { white-space: nowrap; }
td:last-child { white-space: normal; }
th, td { padding: 0.3rem 0.5rem; border: 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
tbody th, thead tr:last-child th:first-child { text-align: left; }
tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 4rem; }
footer { margin-top: 3rem; color: var(--faint); font-size: 0.875rem; }
@media print { body { max-width: none; } h2 { break-after: avoid; } img, table { break-inside: avoid; } }
"""


def page(notebook: Any, title: str, *, code: bool) -> str:
    """The whole page.

    Args:
        notebook: executed; its cells are changed.
        title: of the page, as text.
        code: whether to show the code above its output.
    """
    from mcpdiag import __version__

    notebook.cells = [cell for cell in notebook.cells if NOT_SHOWN not in cell.metadata.get("tags", ())]
    _for_readers(notebook)
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=not code,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    style = STYLE + (_highlighting() if code else "")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<p>{escape(title)}</p>\n{body}\n"
        f"<footer>Made by mcpdiag {__version__}.</footer>\n</body>\n</html>\n"
    )


def write(text: str, output: Path) -> None:
    """All of it or nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    unfinished = None
    try:
        handle, unfinished = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as sink:
            sink.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(unfinished).chmod(0o666 & ~umask)  # mkstemp's is for its owner only
        Path(unfinished).replace(output)
        unfinished = None
    except OSError as error:
        raise ConfigError([f"{output}: found a place that cannot be written ({error.strerror})"]) from None
    finally:
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)


def _for_readers(notebook: Any) -> None:
    """Leave out what is only true of the notebook's own example, and links to files that are not beside the page;
    let pictures be called by the heading that they are under."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = [line for line in cell.source.splitlines() if "without parameters" not in line.lower()]
            cell.source = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]+\)", r"\1", "\n".join(lines))
            found = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
            heading = found[-1] if found else heading
        else:
            cell.metadata["alt"] = heading


def _highlighting() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    plain = ".highlight { background: none !important; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{plain}\n"
