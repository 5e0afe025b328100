"""A run as a folder: the frames of a capture, under the names that they have on a live recorder."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpdiag.samples.base import Samples
from mcpdiag.samples.meta import FORMAT, FORMAT_VERSION
from mcpdiag.samples.schema import SCHEMA, FrameName
from mcpdiag.samples.writer import META

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame


class Capture(Samples):
    """The samples of a run that was written with `--capture`, or with `recorder.save`.

    Frames are read when they are asked for. Of a run that goes on, each look sees the parts written by then.

    Attributes:
        folder: where it is.
        meta: the contents of `meta.json`: versions, platform, masked settings, clock.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self.meta = meta

    def frame(self, name: FrameName) -> DataFrame:
        """The frame of that name, all parts together.

        Raises:
            KeyError: there is none of that name.
            ImportError: pandas or pyarrow is missing.
            ValueError: a part is damaged.
        """
        from mcpdiag.samples.parts import read

        return read(name, self._parts(name))

    def _parts(self, name: FrameName) -> list[Path]:
        return sorted((self.folder / name).glob("part-*.parquet")) if name in SCHEMA else []

    @property
    def written(self) -> dict[FrameName, int]:
        from mcpdiag.samples.parts import count

        dropped = self.dropped
        return {name: count(self._parts(name)) + dropped[name] for name in SCHEMA}

    @property
    def dropped(self) -> dict[FrameName, int]:
        frames = self.meta.get("frames", {})
        return {name: int(frames.get(name, {}).get("dropped", 0)) for name in SCHEMA}

    def _title(self) -> str:
        ended = "" if self.complete else ", not complete: the run goes on, or has ended without order"
        return (
            f"capture {self.folder}, of {self.meta.get('clock', {}).get('started', 'an unknown time')}{ended}"
        )

    @property
    def complete(self) -> bool:
        """Whether the run ended in order. If not, up to the last seconds of it are missing, or it goes on."""
        return self.meta.get("ended_ns") is not None

    async def stream(self, name: FrameName, *, every: float = 1.0) -> AsyncIterator[DataFrame]:
        """The frame part by part, as it was written; `every` has no meaning here, nothing is waited for."""
        from mcpdiag.samples.parts import read

        for part in self._parts(name):
            yield read(name, [part])

    def save(self, folder: str | Path) -> Path:
        """Copy the capture. Raises FileExistsError if the folder is there."""
        return Path(shutil.copytree(self.folder, folder))


def load(folder: str | Path) -> Capture:
    """Open the capture in a folder.

    Raises:
        FileNotFoundError: there is no capture in it.
        ValueError: it is of a later version of mcpdiag, or no capture of ours.
    """
    path = Path(folder)
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no capture in {path}: it has no {META}") from None
    except ValueError as error:
        raise ValueError(f"{path / META} is no JSON: {error}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path / META} is not of a capture: its format is not {FORMAT!r}")
    if meta.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"the capture in {path} has format version {meta['format_version']}, and this mcpdiag knows up to "
            f"{FORMAT_VERSION}; it was written by mcpdiag {meta.get('mcpdiag')}"
        )
    return Capture(path, meta)
