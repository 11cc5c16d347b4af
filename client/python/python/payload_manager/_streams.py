"""Streams: payloads in the order in which they were appended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Iterator
from uuid import UUID

from . import _native
from ._errors import DeadlineExceeded


@dataclass(frozen=True)
class Item:
    """A payload to append, with what is kept beside it."""

    id: UUID | str | bytes
    event_time_ns: int | None = None
    """When it happened, in nanoseconds since 1970 (``time.time_ns()``)."""
    duration_ns: int = 0
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A payload of a stream."""

    offset: int
    """Its place: 0, 1, ... without a gap, never used again."""
    id: UUID
    appended_at: float
    """Seconds since 1970."""
    event_time_ns: int | None
    duration_ns: int
    tags: dict[str, str]


@dataclass(frozen=True)
class StreamInfo:
    """A stream, and what it keeps."""

    name: str
    """``name``, or ``namespace/name``."""
    max_entries: int | None
    max_age: float | None
    retain_payloads: bool
    first: int
    """The offset of the oldest entry that is kept."""
    end: int
    """The offset that the next entry gets."""


@dataclass(frozen=True)
class Group:
    """A group of consumers."""

    name: str
    next: int
    """The offset that it wants next."""
    committed_at: float


_List = list  # `Streams` has a method of this name.


def split_name(name: str) -> tuple[str, str]:
    """``namespace/name`` as two words."""
    namespace, slash, rest = name.partition("/")
    return (namespace, rest) if slash else ("", name)


def item_of(item: Any) -> tuple[Any, int | None, int, list[tuple[str, str]]]:
    """An item, or an id alone, as the native half takes it."""
    if not isinstance(item, Item):
        item = Item(item)
    return item.id, item.event_time_ns, item.duration_ns, list(item.tags.items())


def items_of(items: Any) -> list[tuple[Any, int | None, int, list[tuple[str, str]]]]:
    """One or several items."""
    if isinstance(items, (UUID, str, bytes, Item)):
        items = [items]
    return [item_of(item) for item in items]


def entry_of(entry: tuple[Any, ...]) -> Entry:
    """An entry of the native half."""
    offset, id, appended_at, event_time_ns, duration_ns, tags = entry
    return Entry(offset, id, appended_at, event_time_ns, duration_ns, dict(tags))


def start_of(start: int | str) -> int:
    """Where a subscription starts, as the native half takes it."""
    if start == "beginning":
        return -1
    if start == "latest":
        return -2
    if isinstance(start, int) and start >= 0:
        return start
    raise ValueError(f'a subscription starts at "beginning", at "latest" or at an offset, not at {start!r}')


class Subscription:
    """A stream that is followed: an iterator that waits for entries. Close it, or use it in ``with``."""

    def __init__(self, native: _native.Subscription) -> None:
        self._native = native

    def next(self, timeout: float | None = None) -> Entry:
        """The next entry; :class:`DeadlineExceeded` when there is none within ``timeout`` seconds."""
        found = self._native.next(timeout)
        if found is None:
            raise DeadlineExceeded(f"no entry was appended within {timeout} seconds")
        return entry_of(found)

    def close(self) -> None:
        """Ends it."""
        self._native.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Entry:
        return self.next()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Streams:
    """``client.streams``. A stream's name is ``name`` or ``namespace/name``."""

    def __init__(self, native: _native.Streams) -> None:
        self._native = native

    def create(
        self,
        name: str,
        *,
        max_entries: int | None = None,
        max_age: float | None = None,
        retain_payloads: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Makes an empty stream that keeps so many entries, for so many (whole) seconds; by default all, for ever.
        ``retain_payloads``: payloads stay until every group has committed past them."""
        self._native.create(split_name(name), max_entries, max_age, retain_payloads, timeout)

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a stream; one that is not there is fine."""
        self._native.delete(split_name(name), timeout)

    def append(
        self,
        name: str,
        items: UUID | str | bytes | Item | Iterable[UUID | str | bytes | Item],
        *,
        timeout: float | None = None,
    ) -> range:
        """Appends committed payloads, all or none; returns their offsets."""
        first, last = self._native.append(split_name(name), items_of(items), timeout)
        return range(first, last + 1)

    def read(self, name: str, start: int = 0, max_entries: int = 0, *, timeout: float | None = None) -> _List[Entry]:
        """Entries from an offset on: what one answer holds, at most ``max_entries``. Empty: there is none yet."""
        return [entry_of(entry) for entry in self._native.read(split_name(name), start, max_entries, timeout)]

    def range(self, name: str, first: int, last: int, *, timeout: float | None = None) -> _List[Entry]:
        """The entries between two offsets, both included."""
        return [entry_of(entry) for entry in self._native.range(split_name(name), first, last, timeout)]

    def subscribe(
        self, name: str, start: int | str = "beginning", *, max_inflight: int = 0, timeout: float | None = None
    ) -> Subscription:
        """Follows a stream from ``"beginning"``, from ``"latest"`` or from an offset on. ``timeout`` is for the start."""
        return Subscription(self._native.subscribe(split_name(name), start_of(start), max_inflight, timeout))

    def commit(self, name: str, group: str, offset: int, *, timeout: float | None = None) -> None:
        """Stores how far a group has come: the offset that it wants next."""
        self._native.commit(split_name(name), group, offset, timeout)

    def committed(self, name: str, group: str, *, timeout: float | None = None) -> int | None:
        """How far a group has come; ``None``: it never committed."""
        return self._native.committed(split_name(name), group, timeout)

    def list(self, *, timeout: float | None = None) -> Iterator[StreamInfo]:
        """All streams, by namespace and name."""
        token = None
        while True:
            found, token = self._native.list(token, timeout)
            for (namespace, name), *rest in found:
                yield StreamInfo(f"{namespace}/{name}" if namespace else name, *rest)
            if token is None:
                return

    def groups(self, name: str, *, timeout: float | None = None) -> Iterator[Group]:
        """The groups of a stream, by name."""
        token = None
        while True:
            found, token = self._native.groups(split_name(name), token, timeout)
            yield from (Group(*group) for group in found)
            if token is None:
                return

    def remove_group(self, name: str, group: str, *, timeout: float | None = None) -> None:
        """Forgets a group."""
        self._native.remove_group(split_name(name), group, timeout)
