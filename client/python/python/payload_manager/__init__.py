"""Payload Manager's Python client: payloads in shared memory and local files, leased and read in place.

>>> import payload_manager as pm
>>> client = pm.connect("127.0.0.1:50051")            # or the path of the server's socket
>>> with client.allocate(5, tier="ram", ttl=60.0) as writer:
...     writer.view()[:] = b"hello"
...     id = writer.commit()                          # without it, the space is given back
>>> with client.acquire(id) as payload:
...     bytes(payload)                                # or memoryview, numpy.frombuffer, pyarrow.py_buffer: no copy
b'hello'

Bytes are read-only once they are committed; ``payload.copy()`` is a copy of one's own. A lease ends when its ``with`` block
was left and its last view is gone. :mod:`payload_manager.aio` is the same for asyncio.
"""

from . import _native, aio
from ._client import Client, PayloadId, Spilled, connect
from ._errors import (
    AlreadyExists,
    ChecksumMismatch,
    Closed,
    ConnectionFailed,
    ConnectionLost,
    ContractBroken,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Forked,
    InternalError,
    InvalidArgument,
    LeaseConflict,
    MappingFailed,
    NotFound,
    PayloadError,
    Released,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    ViewsAlive,
)
from ._native import Info, Payload, Writer
from ._records import Edge, Lineage, Meta, Metadata, MetaEvent, Parent
from ._streams import Entry, Group, Item, StreamInfo, Streams, Subscription

__all__ = [
    "AlreadyExists",
    "ChecksumMismatch",
    "Client",
    "Closed",
    "ConnectionFailed",
    "ConnectionLost",
    "ContractBroken",
    "DataLoss",
    "DeadlineExceeded",
    "Edge",
    "Entry",
    "FailedPrecondition",
    "Forked",
    "Group",
    "Info",
    "InternalError",
    "InvalidArgument",
    "Item",
    "LeaseConflict",
    "Lineage",
    "MappingFailed",
    "Meta",
    "MetaEvent",
    "Metadata",
    "NotFound",
    "Parent",
    "Payload",
    "PayloadError",
    "PayloadId",
    "Released",
    "ResourceExhausted",
    "Spilled",
    "StreamInfo",
    "Streams",
    "Subscription",
    "Unavailable",
    "Unimplemented",
    "ViewsAlive",
    "Writer",
    "aio",
    "connect",
]
