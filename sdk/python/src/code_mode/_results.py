"""What programs give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Mapping

Status = Literal["running", "completed", "failed", "terminated"]


@dataclass(frozen=True)
class ContentItem:
    """A piece of a program's output."""

    type: Literal["text", "image", "audio"]
    #: The text, or a ``data:`` URL.
    value: str
    #: Marks console lines (``log``) and warnings (``warning``, ``unfinished``).
    note: str | None = None


@dataclass(frozen=True)
class Position:
    """A place in a program, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Limit:
    """A limit that was hit."""

    name: str
    value: int
    unit: str


@dataclass(frozen=True)
class CellError:
    """Why a program failed."""

    #: With the line it points at and help where there is some: for the model.
    message: str
    #: ``script_error``, ``limit``, ``exited`` (with a status that is not 0), ``lost`` (the process
    #: died) or ``missing`` (no such cell).
    kind: str
    position: Position | None = None
    limit: Limit | None = None
    #: What the program called ``exit`` with.
    exit_status: int | None = None


@dataclass(frozen=True)
class CellStats:
    """What a cell used. Times are in seconds."""

    wall: float
    processor: float
    queued: float
    peak_heap_bytes: int
    output_bytes: int
    calls: int
    calls_failed: int
    calls_cancelled: int


@dataclass(frozen=True)
class CellResult:
    """What one observation of a cell gave."""

    #: ``running``: ``wait`` for more.
    status: Status
    cell_id: str
    #: Output since the last observation.
    content: tuple[ContentItem, ...]
    error: CellError | None = None
    #: What the cell used, once it has ended.
    stats: CellStats | None = None

    @property
    def text(self) -> str:
        """The texts that the program put out by ``text``, joined by newlines; lines of its console are in
        ``content`` alone."""
        return "\n".join(
            item.value for item in self.content if item.type == "text" and item.note is None
        )

    def for_model(self) -> str:
        """The output and the error as one text, for a model. It tells of images and sounds, which are in
        ``content``."""
        names = {"image": "(an image)", "audio": "(a sound)"}
        parts = [names.get(item.type, item.value) for item in self.content]
        if self.error is not None:
            parts.append(f"error: {self.error.message}")
        if self.status == "running":
            parts.append(f"(the program is still running: wait for cell {self.cell_id})")
        if self.status == "terminated":
            parts.append("(the program was terminated)")
        return "\n".join(parts)


def _item(wire: Mapping[str, Any]) -> ContentItem:
    kind = wire["type"]
    if kind == "input_image":
        return ContentItem("image", wire["image_url"])
    if kind == "input_audio":
        return ContentItem("audio", wire["audio_url"])
    return ContentItem("text", wire["text"], wire.get("note"))


def stats(wire: Mapping[str, Any] | None) -> CellStats | None:
    if wire is None:
        return None
    return CellStats(
        wall=wire["wall_ms"] / 1000,
        processor=wire["processor_ms"] / 1000,
        queued=wire["queued_ms"] / 1000,
        peak_heap_bytes=wire["peak_heap_bytes"],
        output_bytes=wire["output_bytes"],
        calls=wire["calls"],
        calls_failed=wire["calls_failed"],
        calls_cancelled=wire["calls_cancelled"],
    )


def result(response: Mapping[str, Any]) -> CellResult:
    """The result that a response of the wire is."""
    (kind, observed), *_ = response.items()
    outcome: Mapping[str, Any] = observed.get("outcome") or {}
    ended = outcome.get("kind")
    succeeded = ended == "completed" or (ended == "exited" and not outcome.get("status"))
    status: Status
    if kind == "Yielded":
        status = "running"
    elif kind == "Terminated" or ended == "shut_down":
        status = "terminated"
    else:
        status = "completed" if succeeded else "failed"
    error = None
    if status == "failed":
        position, limit = observed.get("error_position"), outcome.get("limit")
        error = CellError(
            message=observed.get("error_text")
            or f"the program called exit({outcome.get('status')})",
            kind=str(ended),
            position=Position(**position) if position else None,
            limit=Limit(**limit) if limit else None,
            exit_status=outcome.get("status"),
        )
    return CellResult(
        status=status,
        cell_id=observed["cell_id"],
        content=tuple(_item(item) for item in observed["content_items"]),
        error=error,
        stats=stats(observed.get("stats")),
    )
