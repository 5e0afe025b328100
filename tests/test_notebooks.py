"""The notebooks have the form that their readers and `make notebooks` rely on, and their validation can fail."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import mcpdiag
from tests.conftest import RawClient
from tests.servers.mini import command

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
ALL = sorted(NOTEBOOKS.glob("*.ipynb"))
MARKERS = ("# NBVAL_IGNORE_OUTPUT", "# NBVAL_SKIP")
MACHINE = {
    "an absolute path": re.compile(r"(?<![\w:/.])/(home|root|work|tmp|usr|var|opt|Users|private)/"),
    "a process id": re.compile(r"\bpid[ =:]+\d+|ipykernel_\d+"),
    "ANSI": re.compile("\x1b\\["),
    "an address in memory": re.compile(r" at 0x[0-9a-f]{6,}"),
}
COMPUTED = {  # fractions that are the same each time, by their lines
    "base=0.2 cap=30.0 window=300.0",
    "share that waits: 0.333",
    "constant / varying: 0.5  simulation / formula: 1.0",
    "busy on average: 2.4  without an estimate: [2]",
}
everyone = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield data if isinstance(data, str) else str(data)


def marked(cell: Any) -> bool:
    return cell.source.startswith(MARKERS) or "parameters" in cell.metadata.get("tags", [])


def test_there_are_notebooks() -> None:
    assert [path.stem for path in ALL][:2] == ["00-first-look", "01-runbook"]


@everyone
def test_it_asks_one_question_in_12_to_25_cells(path: Path) -> None:
    cells = read(path).cells
    assert 12 <= len(cells) <= 25
    assert cells[0].cell_type == "markdown"
    title = cells[0].source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")


@everyone
def test_its_parameters_are_in_one_tagged_cell(path: Path) -> None:
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert re.search(r"^(URL|CAPTURE|RESULT)\b.* = ", tagged[0].source, re.MULTILINE)


@everyone
def test_it_says_nothing_of_the_machine_it_was_made_on(path: Path) -> None:
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell.id for cell in notebook.cells]
    assert len({*ids}) == len(ids)
    told = [
        (what, cell.source.splitlines()[0], pattern.search(text))
        for cell in code_cells(notebook)
        for text in texts(cell)
        for what, pattern in MACHINE.items()
        if pattern.search(text)
    ]
    assert told == []


@everyone
def test_it_was_executed_from_top_to_bottom_without_an_error(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert not [each for each in cell.outputs if each.output_type == "error"], cell.source
        assert not [each for each in cell.outputs if each.get("name") == "stderr"], cell.source


@everyone
def test_it_has_cells_whose_output_is_compared(path: Path) -> None:
    """And one of them says `True` or a count, which would change if the claim broke."""
    compared = [cell for cell in code_cells(read(path)) if not marked(cell) and [*texts(cell)]]
    assert len(compared) >= 4
    said = "".join(text for cell in compared for text in texts(cell))
    assert re.search(r"\bTrue\b|: \d+\b", said)
    assert "False" not in said


@everyone
def test_every_fraction_that_is_compared_is_computed_and_not_measured(path: Path) -> None:
    """What is measured differs from run to run: it has a unit, so that notebooks/sanitize.cfg leaves it out."""
    rules = configparser.RawConfigParser()
    rules.read(NOTEBOOKS / "sanitize.cfg")
    said = "".join(text for cell in code_cells(read(path)) if not marked(cell) for text in texts(cell))
    for name in rules.sections():
        said = re.sub(rules[name]["regex"], rules[name]["replace"], said)
    assert {*re.findall(r".*\d\.\d.*", said)} <= COMPUTED


@everyone
def test_every_plot_has_a_number_above_it(path: Path) -> None:
    """Images are not compared, so what they show is said in print before them."""
    for cell in code_cells(read(path)):
        kinds = [
            "image" if "image/png" in each.get("data", {}) else each.output_type for each in cell.outputs
        ]
        if "image" in kinds:
            assert "stream" in kinds[: kinds.index("image")], cell.source


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """As `make notebooks` does it."""
    options = ["-p", "no:randomly", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    sanitize = ["--nbval-sanitize-with", str(NOTEBOOKS / "sanitize.cfg"), "--nbval-cell-timeout", "120"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, *sanitize, "--timeout", "180", str(path)],
        cwd=NOTEBOOKS.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_validation_is_red_where_one_stored_output_is_wrong(tmp_path: Path) -> None:
    """A copy of the first notebook with one count changed: that cell fails, and no other does."""
    notebook = read(NOTEBOOKS / "00-first-look.ipynb")
    (cell,) = [cell for cell in code_cells(notebook) if any("sessions: 3" in text for text in texts(cell))]
    for output in cell.outputs:
        output.text = output.text.replace("sessions: 3", "sessions: 4")
    broken = tmp_path / "broken.ipynb"
    nbformat.write(notebook, broken)
    found = validate(broken)
    assert found.returncode == 1, found.stdout
    assert re.search(r"\b1 failed, \d+ passed", found.stdout), found.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_runbook_pointed_at_a_sick_proxy_names_the_section() -> None:
    """Its first cells with `URL` set, as a person on call runs them: a proxy whose server hangs."""
    notebook = read(NOTEBOOKS / "01-runbook.ipynb")
    notebook.cells = notebook.cells[:7]
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    with mcpdiag.serve({"sick": command("hangs")}, port=0, admin_port=0, request_timeout=0.2) as proxy:
        for _ in range(3):
            assert "request_timeout" in RawClient(proxy.url).initialize().call("echo", text="anybody?")
        parameters.source = f"URL = {proxy.admin_url!r}"
        run = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
        )
        run.execute()
    said = "".join(texts(notebook.cells[-1]))
    assert "['3 hung upstream']" in said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_measurement_that_differs_is_no_failure_and_a_count_is(tmp_path: Path) -> None:
    """What notebooks/sanitize.cfg leaves out: numbers with a unit, and nothing else."""
    source = "import time\nprint(f'took {time.perf_counter_ns()} ms')\nprint('calls:', 3)"
    for stored, code in (("took 5 ms\ncalls: 3\n", 0), ("took 5 ms\ncalls: 4\n", 1)):
        output = nbformat.v4.new_output("stream", name="stdout", text=stored)
        cell = nbformat.v4.new_code_cell(source, outputs=[output], execution_count=1)
        notebook = nbformat.v4.new_notebook(cells=[cell])
        path = tmp_path / f"measured-{code}.ipynb"
        nbformat.write(notebook, path)
        found = validate(path)
        assert found.returncode == code, found.stdout
