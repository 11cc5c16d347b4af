"""numpy arrays as payloads: the payload is the array's memory, its metadata say how to read it.

Metadata: schema :data:`SCHEMA`, data ``{"dtype": "<f4", "shape": [2, 3], "order": "C"}``; ``dtype`` as
``numpy.lib.format`` writes it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from ._errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    import numpy

    from ._client import Client

SCHEMA = "payload_manager.ndarray.v1"


def put(client: Client, array: Any, options: dict[str, Any]) -> UUID:
    """Stores an array."""
    import numpy as np

    array = np.asanyarray(array)
    if array.dtype.hasobject:
        raise InvalidArgument(f"an array of {array.dtype} holds Python objects, which cannot be shared; convert it first")
    if array.nbytes == 0:
        raise InvalidArgument(f"an array of shape {array.shape} has no bytes, and a payload needs at least one")
    order: Any = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    about = {"dtype": np.lib.format.dtype_to_descr(array.dtype), "shape": list(array.shape), "order": order}
    with client.allocate(array.nbytes, **options) as writer:
        # Before the commit: there is no array that cannot be read, whatever happens in between.
        client.metadata.set(writer.id, about, SCHEMA, actor="payload_manager", timeout=options.get("timeout"))
        # numpy's hints know buffers from Python 3.12 on.
        target = np.frombuffer(cast(Any, writer), dtype=array.dtype).reshape(array.shape, order=order)
        np.copyto(target, array)
        del target
        return writer.commit()


def get(client: Client, id: Any, options: dict[str, Any]) -> numpy.ndarray:
    """An array that lies where the payload does, and keeps its lease."""
    import numpy as np

    dtype, shape, order = about(client, id, options)
    payload = client.acquire(id, **options)
    if len(payload) != dtype.itemsize * math.prod(shape):
        raise FailedPrecondition(f"payload {id} has {len(payload)} bytes, which are no array of {dtype} and shape {shape}")
    return np.frombuffer(cast(Any, payload), dtype=dtype).reshape(shape, order=order)


def about(client: Client, id: Any, options: dict[str, Any]) -> tuple[Any, tuple[int, ...], Any]:
    """What the metadata say: dtype, shape, order."""
    import numpy as np

    meta = client.metadata.get(id, timeout=options.get("timeout"))
    if meta is None or meta.schema != SCHEMA:
        found = "no metadata" if meta is None else f"metadata of schema {meta.schema!r}"
        raise FailedPrecondition(f"payload {id} has {found}, hence is no array of put_array; acquire() gives its bytes")
    try:
        words = meta.json()
        dtype = np.lib.format.descr_to_dtype(_descr(words["dtype"]))
        return dtype, tuple(int(length) for length in words["shape"]), {"C": "C", "F": "F"}[words["order"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"the metadata of payload {id} describe no array: {error}") from None


def _descr(descr: Any) -> Any:
    """JSON has lists where numpy wants tuples: the fields of a structured dtype, and shapes."""
    if not isinstance(descr, list):
        return descr
    if descr and all(isinstance(field, list) for field in descr):
        return [(_name(field[0]), _descr(field[1]), *(tuple(shape) for shape in field[2:])) for field in descr]
    return tuple(_descr(part) for part in descr)


def _name(name: Any) -> Any:
    """A field's name; with a title it is a pair."""
    return tuple(name) if isinstance(name, list) else name
