"""A result is what its schema says, is written once, and comes back as it was."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mcpdiag.bench import columns, environment, raw, report
from mcpdiag.bench.columns import Columns, Measurement, Report
from mcpdiag.bench.isolation import Isolation
from mcpdiag.bench.result import FORMAT, Result, claim, folder_for, read, schema, write
from mcpdiag.errors import ConfigError
from tests.bench import made

SCHEMA = Path(__file__).parents[2] / "docs" / "bench-result.schema.json"


def test_the_published_schema_is_that_of_the_code() -> None:
    """After a change: python -c "from mcpdiag.bench.result import publish; publish('docs/bench-result.schema.json')"."""
    assert json.loads(SCHEMA.read_text()) == schema()


def test_a_result_comes_back_as_it_was_and_fits_the_schema(tmp_path: Path) -> None:
    result = made.result(1)
    file = write(result, tmp_path / "a")
    assert read(file) == read(tmp_path / "a") == result
    validator: Any = importlib.import_module("jsonschema")
    validator.validate(json.loads(file.read_text()), schema())


def test_a_result_is_written_once(tmp_path: Path) -> None:
    file = write(made.result(1), tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    for again in (lambda: write(made.result(2), tmp_path), lambda: claim(tmp_path)):
        with pytest.raises(ConfigError, match="never overwritten"):
            again()


def test_folders_are_numbered_by_machine(tmp_path: Path) -> None:
    here = made.machine()
    first = folder_for(here, "matrix", tmp_path)
    assert first == tmp_path / here.machine / "0001_c0ffeec0_matrix"
    first.mkdir(parents=True)
    assert folder_for(replace(here, commit=""), "x", tmp_path).name == "0002_nocommit_x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", FORMAT),
        ('{"format": "mcpdiag.bench/2"}', FORMAT),
        ("not json", FORMAT),
        (None, "found no result"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read(tmp_path)
    assert words in str(error.value)


def test_nothing_in_the_environment_names_the_machine() -> None:
    import getpass
    import socket

    here = environment.here()
    text = msgspec.json.encode(here).decode()
    assert here.cpus >= 1
    assert here.packages["mcpdiag"]
    for name in (socket.gethostname(), str(Path.cwd())):
        assert f'"{name}"' not in text
    assert f'"{getpass.getuser()}"' not in text


def some() -> Measurement:
    cols = Columns()
    cols.add(-5_000, -4_000, 1_000_000, 0, columns.OK)
    cols.add(2_000_000, columns.NEVER, 9_000_000, 1, columns.NOT_SENT)
    return Measurement(Report(window_ns=10**9, calls=("tools/call echo", "ping")), cols)


def test_raw_samples_are_csv_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_arrow", lambda: None)
    with raw.RawFile(tmp_path) as file:
        file.add("stdio x1 reuse on", 0, some())
    assert file.path.name == "samples.csv.gz"
    with gzip.open(file.path, "rt", newline="") as text:
        rows = [*csv.reader(text)]
    assert rows == [
        [*raw.COLUMNS],
        ["stdio x1 reuse on", "0", "-5", "-4", "1000", "tools/call echo", "ok"],
        ["stdio x1 reuse on", "0", "2000", "", "9000", "ping", "not_sent"],
    ]


def test_raw_samples_are_parquet_with_pyarrow(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    with raw.RawFile(tmp_path) as file:
        file.add("http x8 reuse off", 2, some())
    assert file.path.name == "samples.parquet"
    rows = parquet.read_table(file.path).to_pylist()
    assert [tuple(row) for row in rows] == [raw.COLUMNS] * 2
    assert rows[1]["sent_us"] is None
    assert rows[1]["outcome"] == "not_sent"


def test_importing_the_bench_costs_no_heavy_library() -> None:
    heavy = ["pandas", "numpy", "pyarrow", "matplotlib", "memray", "httpx"]
    modules = "mcpdiag.bench.gate, mcpdiag.cli.bench_run, mcpdiag.cli.bench_show"
    code = f"import {modules}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- as people and programs read it ------------------------------------------------------------------------------


def crossed(result: Result) -> Result:
    verdict = Isolation(
        verdict="cross-talk", exchanges=10, foreign=2, by="ids", evidence="alpha received omega"
    )
    return replace(result, isolation=(replace(result.isolation[0], isolation=verdict),))


def test_the_table_fits_a_hundred_columns() -> None:
    text = report.plain(report.HEADINGS, report.rows(made.result(1)))
    assert len(text.splitlines()) == 13
    assert max(map(len, text.splitlines())) <= report.WIDTH


def test_sentences_say_what_the_numbers_mean() -> None:
    said = " ".join(report.sentences(made.result(1)))
    assert "Reusing connections gives" in said
    assert "x (" in said
    assert "No cross-talk seen in 1,000 exchanges of two marked clients." in said
    assert "CROSS-TALK over stdio" in " ".join(report.sentences(crossed(made.result(1))))
    assert "Interrupted" in report.sentences(replace(made.result(1), complete=False))[-1]


def test_an_interval_of_one_round_is_not_shown_as_one() -> None:
    assert "(1 round)" in " ".join(report.sentences(made.result(1, repeat=1)))


def test_a_cell_whose_generator_was_saturated_says_so() -> None:
    result = made.result(1)
    first = result.cells[0]
    repetitions = tuple(replace(each, saturated="its core was 99% busy") for each in first.repetitions)
    tainted = replace(result, cells=(replace(first, repetitions=repetitions), *result.cells[1:]))
    assert any("Saturated generator in stdio x1 reuse on" in each for each in report.sentences(tainted))


def test_other_programs_get_csv_markdown_and_junit() -> None:
    from xml.etree.ElementTree import fromstring

    result = crossed(made.result(1))
    rows = [*csv.DictReader(report.comma_separated(result).splitlines())]
    assert len(rows) == 12 * 5
    assert float(rows[0]["p95_ms"]) == result.cells[0].repetitions[0].summary.p95_ms
    assert report.markdown(result).count("\n|") == 13
    suite = fromstring(report.junit(result))  # noqa: S314  (our own)
    assert (suite.get("tests"), suite.get("failures")) == ("13", "1")
