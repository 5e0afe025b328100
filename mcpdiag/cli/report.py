"""`mcpdiag report`: a capture or a bench result as one page, made by executing a notebook."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from mcpdiag.errors import ConfigError, StartError

NEEDS: Final = ("nbclient", "nbconvert", "nbformat", "ipykernel", "matplotlib", "pandas", "pyarrow")
RESULT_FILE, CAPTURE_FILE = "result.json", "meta.json"


def report(
    source: Annotated[
        Path, typer.Argument(help="A folder of --capture, or of many, or of a result of `mcpdiag bench`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    targets: Annotated[
        Path | None, typer.Option(help="Of a result: a .toml file with targets (docs/bench.md).")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Of a result: what to compare with. [default: the newest stored one of its kind]"),
    ] = None,
    code: Annotated[bool, typer.Option("--code", help="Show the code of the notebook too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that is there.")] = False,
) -> None:
    """Make one self-contained HTML page of a capture or a bench result.

    Examples:

    `mcpdiag report captures/monday -o monday.html`

    `mcpdiag report mcpdiag-results/laptop/0003_1a2b3c4d_matrix -o bench.html`
    """
    problems: list[str] = []
    name, parameters = _notebook(source, problems)
    if name is not None and "RESULT" in parameters:
        for option, path in (("TARGETS", targets), ("BASELINE", baseline)):
            if path is not None:
                parameters[option] = str(path.resolve())
                if not path.exists():
                    problems.append(f"--{option.lower()}: found no {path}; allowed: a file that is there")
    elif name is not None and (targets or baseline):
        problems.append(
            "--targets, --baseline: found them with a capture; allowed: with a result of mcpdiag bench"
        )
    if output.is_dir():
        problems.append(
            f"--output: found the folder {output}; allowed: a file in it, such as {output / 'report.html'}"
        )
    elif output.exists() and not force:
        problems.append(f"{output}: found a file already; give another --output, or --force to replace it")
    elif not output.parent.is_dir():
        problems.append(f"--output: found no folder {output.parent}; make it first")
    if problems:
        raise ConfigError(problems)
    assert name is not None
    missing = [each for each in NEEDS if find_spec(each) is None]
    if missing:
        raise StartError(
            f"a report is made by executing a notebook, which needs {', '.join(missing)}; "
            "pip install 'mcpdiag[notebook]'"
        )
    from mcpdiag.cli.bench_show import progress
    from mcpdiag.cli.report_make import execute, folder
    from mcpdiag.cli.report_page import page, write

    with progress(quiet=not sys.stderr.isatty()) as tell:
        notebook = execute(folder() / name, parameters, tell)
        write(page(notebook, f"mcpdiag report: {source.resolve().name}", code=code), output)
    print(f"Report: {output} ({output.stat().st_size / 1e6:.1f} MB)")


def _notebook(source: Path, problems: list[str]) -> tuple[str | None, dict[str, str]]:
    """The notebook for what there is, and its parameters; or None, with the reason among the problems."""
    where = str(source.resolve())
    if source.name == RESULT_FILE or (source / RESULT_FILE).exists():
        from mcpdiag.bench import result

        result.read(source)  # says what is wrong with it
        return "02-benchmark-report.ipynb", {"RESULT": where}
    captures = (
        [source]
        if (source / CAPTURE_FILE).exists()
        else [each.parent for each in source.glob(f"*/{CAPTURE_FILE}")]
    )
    if captures:
        from mcpdiag.samples.capture import load

        for each in captures:
            try:
                load(each)
            except (OSError, ValueError) as error:
                problems.append(str(error))
        return "06-attach.ipynb", {"CAPTURE": where}
    found = "no such folder" if not source.exists() else _instead(source)
    problems.append(
        f"{source}: found {found}; allowed: a capture, which has a {CAPTURE_FILE}, a folder of captures, or a result "
        f"of mcpdiag bench, which has a {RESULT_FILE}"
    )
    return None, {}


def _instead(source: Path) -> str:
    return "a file" if source.is_file() else f"neither {CAPTURE_FILE} nor {RESULT_FILE} in it"
