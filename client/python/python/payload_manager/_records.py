"""Metadata and lineage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterable, Iterator
from uuid import UUID

from . import _native


@dataclass(frozen=True)
class Meta:
    """A payload's current metadata."""

    data: bytes
    """As they were given."""
    schema: str
    """The name of their schema."""
    updated_at: float
    """When they were stored, in seconds since 1970."""

    def json(self) -> Any:
        """The data, read as JSON."""
        return json.loads(self.data)


@dataclass(frozen=True)
class MetaEvent:
    """One entry of a payload's metadata history."""

    number: int
    kind: str
    """``replaced``, ``merged`` or ``noted``."""
    data: bytes
    schema: str
    at: float
    """Seconds since 1970."""
    source: str
    """Who did it."""
    reason: str
    version: str


@dataclass(frozen=True)
class Edge:
    """One step of a lineage: ``child`` was made of ``parent``."""

    child: UUID
    parent: UUID
    operation: str
    role: str
    parameters: bytes


@dataclass(frozen=True)
class Parent:
    """Something that a payload was made of."""

    id: UUID | str | bytes
    operation: str = ""
    role: str = ""
    parameters: bytes = b""


def _encoded(data: Any) -> bytes:
    """Bytes as they are, text as UTF-8, everything else as JSON."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    if isinstance(data, str):
        return data.encode()
    return json.dumps(data).encode()


class Metadata:
    """``client.metadata``: bytes and the name of their schema, attached to payloads. At most 1 MiB each."""

    def __init__(self, records: _native.Records) -> None:
        self._records = records

    def get(self, id: UUID | str | bytes, *, timeout: float | None = None) -> Meta | None:
        """The current metadata; ``None``: there never were any."""
        found = self._records.metadata(id, timeout)
        return None if found is None else Meta(*found)

    def set(
        self,
        id: UUID | str | bytes,
        data: Any,
        schema: str = "",
        *,
        actor: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> Meta:
        """Replaces the metadata. ``data``: bytes, text, or anything that JSON can say."""
        return Meta(*self._records.update(id, _encoded(data), schema, False, actor, reason, timeout))

    def merge(
        self,
        id: UUID | str | bytes,
        data: Any,
        schema: str = "",
        *,
        actor: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> Meta:
        """Merges a JSON object into the one that is there (RFC 7396); returns what results."""
        return Meta(*self._records.update(id, _encoded(data), schema, True, actor, reason, timeout))

    def note(
        self,
        id: UUID | str | bytes,
        data: Any,
        schema: str = "",
        *,
        source: str = "",
        version: str = "",
        timeout: float | None = None,
    ) -> float:
        """Adds an event to the history and leaves the metadata as they are; returns when it was stored."""
        return self._records.note(id, _encoded(data), schema, source, version, timeout)

    def history(self, id: UUID | str | bytes, *, timeout: float | None = None) -> Iterator[MetaEvent]:
        """Every change, oldest first."""
        token = None
        while True:
            events, token = self._records.history(id, token, timeout)
            yield from (MetaEvent(*event) for event in events)
            if token is None:
                return


class Lineage:
    """``client.lineage``: which payloads a payload was made of. It keeps nothing alive."""

    def __init__(self, records: _native.Records) -> None:
        self._records = records

    def add(
        self,
        child: UUID | str | bytes,
        parents: Iterable[UUID | str | bytes | Parent],
        operation: str = "",
        role: str = "",
        *,
        timeout: float | None = None,
    ) -> None:
        """Says what ``child`` was made of: ids, or :class:`Parent` where they differ in more than their id."""
        if isinstance(parents, (UUID, str, bytes, Parent)):
            parents = [parents]
        each = [parent if isinstance(parent, Parent) else Parent(parent, operation, role) for parent in parents]
        self._records.add_lineage(child, [(p.id, p.operation, p.role, p.parameters) for p in each], timeout)

    def upstream(self, id: UUID | str | bytes, depth: int = 0, *, timeout: float | None = None) -> list[Edge]:
        """What it was made of, breadth first; at most ``depth`` steps away, 0: all."""
        return [Edge(*edge) for edge in self._records.lineage(id, True, depth, timeout)]

    def downstream(self, id: UUID | str | bytes, depth: int = 0, *, timeout: float | None = None) -> list[Edge]:
        """What was made of it; as :meth:`upstream`."""
        return [Edge(*edge) for edge in self._records.lineage(id, False, depth, timeout)]
