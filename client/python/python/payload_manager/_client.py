"""The client: the native half, with what is easier said in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable, Iterator, cast
from uuid import UUID

from . import _arrays, _native, _tables
from ._errors import FailedPrecondition
from ._native import Info, Payload, Writer
from ._records import Lineage, Metadata
from ._streams import Streams

if TYPE_CHECKING:
    import numpy
    import pyarrow

PayloadId = UUID | str | bytes
"""How an id may be given: ``uuid.UUID``, its text, or its 16 bytes."""

_List = list  # The class has a method of this name.


@dataclass(frozen=True)
class Spilled:
    """What became of one payload of :meth:`Client.spill`."""

    id: PayloadId
    """As it was given."""
    info: Info | None
    """As it is now; ``None`` when it was discarded, or stays where it is."""
    error: str | None
    """Why it stays where it is."""

    @property
    def ok(self) -> bool:
        """True when it is where it was to be."""
        return self.error is None


class Client(_native.Client):
    """A connection to a server: ``pm.connect("127.0.0.1:50051")``.

    Threads may share one. Every call takes a ``timeout`` in seconds; without one it waits as long as the server's
    documentation says, or as ``connect(timeout=...)`` did.
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def metadata(self) -> Metadata:
        """Metadata of payloads, and their history."""
        return Metadata(self._records)

    @property
    def lineage(self) -> Lineage:
        """What payloads were made of."""
        return Lineage(self._records)

    @property
    def streams(self) -> Streams:
        """Payloads in order."""
        return Streams(self._streams)

    def get(self, id: PayloadId, **options: Any) -> Payload:
        """Leases a payload: :meth:`acquire` for use without ``with``. The lease ends when the last reference and the
        last view are gone; ``copy()`` of it is a ``bytearray`` of one's own."""
        return self.acquire(id, **options)

    def put_array(self, array: numpy.ndarray, **options: Any) -> UUID:
        """Stores a numpy array; its dtype and shape go into the payload's metadata. Options are those of
        :meth:`allocate`."""
        return _arrays.put(self, array, options)

    def get_array(self, id: PayloadId, **options: Any) -> numpy.ndarray:
        """A stored array, in place: read-only, without a copy. The array keeps the lease. ``array.copy()`` is
        writable. Options are those of :meth:`acquire`."""
        return _arrays.get(self, id, options)

    def put_table(self, table: pyarrow.Table, **options: Any) -> UUID:
        """Stores an Arrow table (or record batch); its schema goes into the payload's metadata, too. Options are those
        of :meth:`allocate`."""
        return _tables.put(self, table, options)

    def get_table(self, id: PayloadId, **options: Any) -> pyarrow.Table:
        """A stored table, in place, without a copy. Its columns keep the lease. Options are those of
        :meth:`acquire`."""
        return _tables.get(self, id, options)

    def spill(
        self,
        ids: PayloadId | Iterable[PayloadId],
        to: str | None = None,
        *,
        wait: bool = True,
        wait_for_leases: bool = False,
        fsync: bool = False,
        expected_version: int | None = None,
        timeout: float | None = None,
    ) -> Info | None | _List[Spilled]:
        """Moves payloads to a slower tier: ``to`` is ``"disk"``, ``"object"`` or ``"void"`` (discard); by default what
        each was allocated with, else disk.

        For one id: its info afterwards, and :class:`FailedPrecondition` when it stays where it is. For several: a list
        of :class:`Spilled`, in order.
        """
        one = ids if isinstance(ids, (UUID, str, bytes)) else None
        wanted = [one] if one is not None else _List(cast("Iterable[PayloadId]", ids))
        results = self._spill(wanted, to, wait, wait_for_leases, fsync, expected_version, timeout)
        if one is None:
            return [Spilled(id, info, error) for id, (info, error) in zip(wanted, results)]
        info, error = results[0]
        if error is not None:
            raise FailedPrecondition(error)
        return info

    def list(self, tier: str | None = None, *, page_size: int = 0, timeout: float | None = None) -> Iterator[Info]:
        """All payloads, newest first, fetched page by page as the iterator is advanced."""
        token = None
        while True:
            rows, token, _total = self._list_page(tier, page_size, token, timeout)
            yield from rows
            if token is None:
                return

    def count(self, tier: str | None = None, *, timeout: float | None = None) -> int:
        """How many payloads there are."""
        return self._list_page(tier, 1, None, timeout)[2] or 0

    def find(self, *, timeout: float | None = None, **wish: Any) -> Iterator[Info]:
        """Payloads for which all holds that is given: ``tier``, ``state``, ``created_from`` and ``created_before``
        (seconds since 1970), ``size_min``, ``size_max``, ``schema``, ``fields`` and ``tags`` of the metadata's JSON
        object (dicts), ``oldest_first``, ``page_size``."""
        wish = find_wish(wish)
        token = None
        while True:
            rows, token, _total = self._find_page(wish, token, timeout)
            yield from rows
            if token is None:
                return


FIND_WORDS = frozenset(
    "tier state created_from created_before size_min size_max schema fields tags oldest_first page_size".split()
)


def find_wish(wish: dict[str, Any]) -> dict[str, Any]:
    """Checks the words, and writes fields as JSON and tags as pairs."""
    import json

    for word in wish:
        if word not in FIND_WORDS:
            raise TypeError(f"find() knows no {word!r}; it knows {', '.join(sorted(FIND_WORDS))}")
    wish = dict(wish)
    wish["fields"] = [(path, json.dumps(value)) for path, value in dict(wish.get("fields") or {}).items()]
    wish["tags"] = [(key, value or "") for key, value in dict(wish.get("tags") or {}).items()]
    return wish


def connect(target: str = "127.0.0.1:50051", *, timeout: float | None = None, native: bool | None = None) -> Client:
    """Connects to a server.

    ``target`` is ``host:port``, or the path of its socket (``local.socket_path``), which serves leases, allocations and
    moves alone. Where the server is on this host, leases and allocations go through memory that both share.

    ``timeout``: for calls that say none. ``native``: ``True`` demands that path, ``False`` uses gRPC alone.
    """
    return Client(target, timeout=timeout, native=native)
