"""The same client for asyncio: ``client = await pm.aio.connect("127.0.0.1:50051")``.

What waits is awaited; the calls run on a few threads of the client, so that the event loop never blocks. Payloads and
writers are those of :mod:`payload_manager`: reading and writing their memory waits for nobody.

>>> async with client.allocate(5) as writer:
...     writer.view()[:] = b"hello"
...     id = await writer.commit()
>>> async with client.acquire(id) as payload:
...     bytes(payload)

A call that is cancelled goes on on its thread, up to its timeout; what it leased or allocated is then given back.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Generator, Generic, Iterable, TypeVar
from uuid import UUID

from . import _client, _records, _streams
from ._native import Info, Payload
from ._native import Writer as NativeWriter

if TYPE_CHECKING:
    import numpy
    import pyarrow

PayloadId = _client.PayloadId
T = TypeVar("T")
_List = list  # `Streams` has a method of this name.

THREADS_MAX = 32
"""Calls of one client that wait at a time; more of them queue."""

_END = object()


async def connect(
    target: str = "127.0.0.1:50051", *, timeout: float | None = None, native: bool | None = None
) -> Client:
    """Connects; as :func:`payload_manager.connect`."""
    loop = asyncio.get_running_loop()
    connecting = functools.partial(_client.connect, target, timeout=timeout, native=native)
    return Client(await loop.run_in_executor(None, connecting))


class _Threads:
    """Runs blocking calls on a few threads of one client's own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="payload-manager")

    def run(self, call: Callable[..., T], *arguments: Any, **options: Any) -> Awaitable[T]:
        work = functools.partial(call, *arguments, **options)
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def each(self, rows: Callable[[], Iterable[T]]) -> AsyncIterator[T]:
        """A blocking iterator's items, one step at a time."""
        items = iter(await self.run(rows))
        while (item := await self.run(next, items, _END)) is not _END:
            yield item

    def close(self) -> None:
        self._pool.shutdown(wait=False)


class _Opening(Generic[T]):
    """What ``allocate`` and ``acquire`` return: to be awaited, or used in ``async with``."""

    def __init__(self, opening: Callable[[], Awaitable[T]], closing: Callable[[T], Awaitable[None]]) -> None:
        self._opening, self._closing = opening, closing
        self._open: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._opening().__await__()

    async def __aenter__(self) -> T:
        self._open = await self._opening()
        return self._open

    async def __aexit__(self, *_exception: object) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            await self._closing(opened)


class Writer:
    """Reserved space for a new payload; as :class:`payload_manager.Writer`, with an awaitable ``commit``."""

    def __init__(self, writer: NativeWriter, threads: _Threads) -> None:
        self._writer, self._threads = writer, threads

    @property
    def id(self) -> UUID:
        """The id that the payload will have."""
        return self._writer.id

    @property
    def nbytes(self) -> int:
        """How many bytes were reserved."""
        return self._writer.nbytes

    @property
    def committed(self) -> bool:
        """True once ``commit()`` succeeded."""
        return self._writer.committed

    @property
    def buffer(self) -> NativeWriter:
        """What takes part in Python's buffer protocol: ``numpy.frombuffer(writer.buffer, dtype)``."""
        return self._writer

    def view(self) -> memoryview:
        """A writable memoryview of the space. ``commit()`` ends it."""
        return self._writer.view()

    async def commit(self, **options: Any) -> UUID:
        """Makes the bytes a payload, and returns its id."""
        return await self._threads.run(self._writer.commit, **options)

    async def durable(self) -> None:
        """Waits until what ``commit(wait="accepted")`` accepted is durable."""
        await self._threads.run(self._writer.durable)

    async def abort(self) -> None:
        """Gives the space back, once no view of it is left."""
        await self._threads.run(self._writer.abort)

    def __len__(self) -> int:
        return len(self._writer)

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.abort()


class Client:
    """A connection to a server. Made by :func:`connect`; every method is that of :class:`payload_manager.Client`."""

    def __init__(self, client: _client.Client) -> None:
        self._client, self._threads = client, _Threads()

    @property
    def target(self) -> str:
        """What it was connected to."""
        return self._client.target

    @property
    def is_native(self) -> bool:
        """True when leases and allocations go through shared memory instead of gRPC."""
        return self._client.is_native

    @property
    def has_arenas(self) -> bool:
        """True when ``allocate(memory="arena")`` and ``"sealed"`` are to be had here."""
        return self._client.has_arenas

    def allocate(self, nbytes: int, tier: str = "ram", ttl: float | None = None, **options: Any) -> _Opening[Writer]:
        """Reserves space: ``async with client.allocate(n) as writer``, or ``await`` it."""

        async def opening() -> Writer:
            writer = await self._threads.run(self._client.allocate, nbytes, tier, ttl, **options)
            return Writer(writer, self._threads)

        return _Opening(opening, Writer.abort)

    def acquire(
        self, id: PayloadId, min_tier: str | None = None, timeout: float | None = None, **options: Any
    ) -> _Opening[Payload]:
        """Leases a payload: ``async with client.acquire(id) as payload``, or ``await`` it."""

        async def opening() -> Payload:
            return await self._threads.run(self._client.acquire, id, min_tier, timeout, **options)

        async def closing(payload: Payload) -> None:
            await self._threads.run(payload.release)

        return _Opening(opening, closing)

    async def put(self, data: Any, **options: Any) -> UUID:
        """Stores bytes."""
        return await self._threads.run(self._client.put, data, **options)

    async def get(self, id: PayloadId, **options: Any) -> Payload:
        """Leases a payload for use without ``async with``."""
        return await self._threads.run(self._client.get, id, **options)

    async def put_array(self, array: numpy.ndarray, **options: Any) -> UUID:
        """Stores a numpy array."""
        return await self._threads.run(self._client.put_array, array, **options)

    async def get_array(self, id: PayloadId, **options: Any) -> numpy.ndarray:
        """A stored array, in place."""
        return await self._threads.run(self._client.get_array, id, **options)

    async def put_table(self, table: pyarrow.Table, **options: Any) -> UUID:
        """Stores an Arrow table."""
        return await self._threads.run(self._client.put_table, table, **options)

    async def get_table(self, id: PayloadId, **options: Any) -> pyarrow.Table:
        """A stored table, in place."""
        return await self._threads.run(self._client.get_table, id, **options)

    async def info(self, id: PayloadId, **options: Any) -> Info:
        """Tells what a payload is now."""
        return await self._threads.run(self._client.info, id, **options)

    async def delete(self, id: PayloadId, **options: Any) -> None:
        """Removes a payload."""
        await self._threads.run(self._client.delete, id, **options)

    async def spill(self, ids: Any, to: str | None = None, **options: Any) -> Any:
        """Moves payloads to a slower tier."""
        return await self._threads.run(self._client.spill, ids, to, **options)

    async def promote(self, id: PayloadId, tier: str = "ram", **options: Any) -> Info:
        """Brings a payload to a faster tier."""
        return await self._threads.run(self._client.promote, id, tier, **options)

    async def prefetch(self, id: PayloadId, tier: str = "ram", **options: Any) -> None:
        """Has a payload brought to a faster tier in the background."""
        await self._threads.run(self._client.prefetch, id, tier, **options)

    async def pin(self, id: PayloadId, duration: float | None = None, **options: Any) -> None:
        """Keeps a payload where it is."""
        await self._threads.run(self._client.pin, id, duration, **options)

    async def unpin(self, id: PayloadId, **options: Any) -> None:
        """Ends a pin."""
        await self._threads.run(self._client.unpin, id, **options)

    def list(self, tier: str | None = None, **options: Any) -> AsyncIterator[Info]:
        """All payloads, newest first: ``async for``."""
        return self._threads.each(lambda: self._client.list(tier, **options))

    async def count(self, tier: str | None = None, **options: Any) -> int:
        """How many payloads there are."""
        return await self._threads.run(self._client.count, tier, **options)

    def find(self, **wish: Any) -> AsyncIterator[Info]:
        """Payloads for which all holds that is given: ``async for``."""
        return self._threads.each(lambda: self._client.find(**wish))

    async def stats(self, **options: Any) -> dict[str, Any]:
        """What each tier holds, and what the node does."""
        return await self._threads.run(self._client.stats, **options)

    @property
    def metadata(self) -> Metadata:
        """Metadata of payloads, and their history."""
        return Metadata(self._client.metadata, self._threads)

    @property
    def lineage(self) -> Lineage:
        """What payloads were made of."""
        return Lineage(self._client.lineage, self._threads)

    @property
    def streams(self) -> Streams:
        """Payloads in order."""
        return Streams(self._client.streams, self._threads)

    async def close(self) -> None:
        """Lets the connection go."""
        await self._threads.run(self._client.close)
        self._threads.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()


class Metadata:
    """``client.metadata``; as :class:`payload_manager.Metadata`."""

    def __init__(self, metadata: _records.Metadata, threads: _Threads) -> None:
        self._metadata, self._threads = metadata, threads

    async def get(self, id: PayloadId, **options: Any) -> _records.Meta | None:
        """The current metadata."""
        return await self._threads.run(self._metadata.get, id, **options)

    async def set(self, id: PayloadId, data: Any, schema: str = "", **options: Any) -> _records.Meta:
        """Replaces the metadata."""
        return await self._threads.run(self._metadata.set, id, data, schema, **options)

    async def merge(self, id: PayloadId, data: Any, schema: str = "", **options: Any) -> _records.Meta:
        """Merges a JSON object into the one that is there."""
        return await self._threads.run(self._metadata.merge, id, data, schema, **options)

    async def note(self, id: PayloadId, data: Any, schema: str = "", **options: Any) -> float:
        """Adds an event to the history."""
        return await self._threads.run(self._metadata.note, id, data, schema, **options)

    def history(self, id: PayloadId, **options: Any) -> AsyncIterator[_records.MetaEvent]:
        """Every change, oldest first: ``async for``."""
        return self._threads.each(lambda: self._metadata.history(id, **options))


class Lineage:
    """``client.lineage``; as :class:`payload_manager.Lineage`."""

    def __init__(self, lineage: _records.Lineage, threads: _Threads) -> None:
        self._lineage, self._threads = lineage, threads

    async def add(self, child: PayloadId, parents: Any, operation: str = "", role: str = "", **options: Any) -> None:
        """Says what ``child`` was made of."""
        await self._threads.run(self._lineage.add, child, parents, operation, role, **options)

    async def upstream(self, id: PayloadId, depth: int = 0, **options: Any) -> list[_records.Edge]:
        """What it was made of."""
        return await self._threads.run(self._lineage.upstream, id, depth, **options)

    async def downstream(self, id: PayloadId, depth: int = 0, **options: Any) -> list[_records.Edge]:
        """What was made of it."""
        return await self._threads.run(self._lineage.downstream, id, depth, **options)


class Streams:
    """``client.streams``; as :class:`payload_manager.Streams`."""

    def __init__(self, streams: _streams.Streams, threads: _Threads) -> None:
        self._streams, self._threads = streams, threads

    async def create(self, name: str, **options: Any) -> None:
        """Makes an empty stream."""
        await self._threads.run(self._streams.create, name, **options)

    async def delete(self, name: str, **options: Any) -> None:
        """Removes a stream."""
        await self._threads.run(self._streams.delete, name, **options)

    async def append(self, name: str, items: Any, **options: Any) -> range:
        """Appends committed payloads, all or none."""
        return await self._threads.run(self._streams.append, name, items, **options)

    async def read(self, name: str, start: int = 0, max_entries: int = 0, **options: Any) -> _List[_streams.Entry]:
        """Entries from an offset on."""
        return await self._threads.run(self._streams.read, name, start, max_entries, **options)

    async def range(self, name: str, first: int, last: int, **options: Any) -> _List[_streams.Entry]:
        """The entries between two offsets, both included."""
        return await self._threads.run(self._streams.range, name, first, last, **options)

    async def subscribe(self, name: str, start: int | str = "beginning", **options: Any) -> Subscription:
        """Follows a stream: ``async for entry in await client.streams.subscribe(name)``."""
        return Subscription(await self._threads.run(self._streams.subscribe, name, start, **options))

    async def commit(self, name: str, group: str, offset: int, **options: Any) -> None:
        """Stores how far a group has come."""
        await self._threads.run(self._streams.commit, name, group, offset, **options)

    async def committed(self, name: str, group: str, **options: Any) -> int | None:
        """How far a group has come."""
        return await self._threads.run(self._streams.committed, name, group, **options)

    def list(self, **options: Any) -> AsyncIterator[_streams.StreamInfo]:
        """All streams: ``async for``."""
        return self._threads.each(lambda: self._streams.list(**options))

    def groups(self, name: str, **options: Any) -> AsyncIterator[_streams.Group]:
        """The groups of a stream: ``async for``."""
        return self._threads.each(lambda: self._streams.groups(name, **options))

    async def remove_group(self, name: str, group: str, **options: Any) -> None:
        """Forgets a group."""
        await self._threads.run(self._streams.remove_group, name, group, **options)


class Subscription:
    """A stream that is followed: ``async for`` its entries. It has a thread of its own while it waits."""

    WAIT = 0.5
    """Seconds after which its thread looks whether it was closed."""

    def __init__(self, subscription: _streams.Subscription) -> None:
        self._subscription = subscription
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="payload-manager-stream")
        self._waiting: asyncio.Future[_streams.Entry | None] | None = None
        self._closed = False

    def _wait(self) -> _streams.Entry | None:
        while not self._closed:
            found = self._subscription._native.next(self.WAIT)
            if found is not None:
                return _streams.entry_of(found)
        return None

    async def next(self) -> _streams.Entry:
        """The next entry. When it is cancelled, none is lost: the next call gets what came meanwhile."""
        if self._closed:
            raise StopAsyncIteration
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().run_in_executor(self._pool, self._wait)
        entry = await asyncio.shield(self._waiting)
        self._waiting = None
        if entry is None:
            raise StopAsyncIteration
        return entry

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> _streams.Entry:
        return await self.next()

    async def close(self) -> None:
        """Ends it."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._pool, self._subscription.close)
            self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()
