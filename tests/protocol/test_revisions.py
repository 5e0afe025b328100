"""What each revision allows, as its specification says."""

from __future__ import annotations

import dataclasses

import pytest

from mcpdiag.protocol.revisions import (
    DEFAULT_WITHOUT_HEADER,
    KNOWN,
    LATEST_HANDSHAKE,
    Era,
    Revision,
    known_names,
)

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS = ("2026-07-28",)


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("streamable_http", {"2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"}),
        ("sessions", {"2025-03-26", "2025-06-18", "2025-11-25"}),
        ("get_stream", {"2025-03-26", "2025-06-18", "2025-11-25"}),
        ("resumption", {"2025-03-26", "2025-06-18", "2025-11-25"}),
        ("priming", {"2025-11-25"}),
        ("batches", {"2025-03-26"}),
        ("protocol_header", {"2025-06-18", "2025-11-25", "2026-07-28"}),
        ("server_requests", set(HANDSHAKE)),
        ("close_cancels", {"2026-07-28"}),
    ],
)
def test_a_flag_holds_for_these_revisions_only(flag: str, names: set[str]) -> None:
    assert {name for name, revision in KNOWN.items() if getattr(revision, flag)} == names


def test_every_flag_is_tested_above() -> None:
    marks = test_a_flag_holds_for_these_revisions_only.pytestmark  # type: ignore[attr-defined]
    tested = {flag for flag, _ in marks[0].args[1]}
    assert {spec.name for spec in dataclasses.fields(Revision)} == tested | {"name", "era"}


@pytest.mark.parametrize(
    ("era", "names"), [(None, HANDSHAKE + STATELESS), ("handshake", HANDSHAKE), ("stateless", STATELESS)]
)
def test_known_names_are_those_of_the_era_the_oldest_first(era: Era | None, names: tuple[str, ...]) -> None:
    assert known_names(era) == names


def test_the_two_named_revisions() -> None:
    assert known_names("handshake")[-1] == LATEST_HANDSHAKE
    # What sends no header is the last revision that knows none.
    assert (
        max(name for name, revision in KNOWN.items() if not revision.protocol_header)
        == DEFAULT_WITHOUT_HEADER
    )


def test_a_revision_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KNOWN[LATEST_HANDSHAKE].batches = True  # type: ignore[misc]


def test_every_revision_is_found_under_its_own_name() -> None:
    assert [revision.name for revision in KNOWN.values()] == [*KNOWN]
