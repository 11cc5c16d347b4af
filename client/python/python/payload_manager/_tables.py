"""Arrow tables as payloads: the payload is an Arrow IPC stream, its metadata have the schema for people and searches.

Metadata: schema :data:`SCHEMA`, data ``{"rows": 3, "columns": {"a": "int64"}, "arrow_schema": "<base64>"}``, the last being
the schema as Arrow serialises it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from ._client import Client

SCHEMA = "payload_manager.table.v1"


def put(client: Client, table: Any, options: dict[str, Any]) -> UUID:
    """Stores a table."""
    import pyarrow as pa

    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if not isinstance(table, pa.Table):
        raise InvalidArgument(f"a {type(table).__name__} is no Arrow table; give a pyarrow.Table or RecordBatch")
    # Written once for its size, which costs no copy, and once in place.
    measured = pa.MockOutputStream()
    _write(measured, table)
    about = {
        "rows": table.num_rows,
        "columns": {field.name: str(field.type) for field in table.schema},
        "arrow_schema": base64.b64encode(table.schema.serialize()).decode(),
    }
    with client.allocate(measured.size(), **options) as writer:
        client.metadata.set(writer.id, about, SCHEMA, actor="payload_manager", timeout=options.get("timeout"))
        target = pa.py_buffer(writer)
        sink = pa.FixedSizeBufferWriter(target)
        _write(sink, table)
        sink.close()
        del sink, target
        return writer.commit()


def get(client: Client, id: Any, options: dict[str, Any]) -> Any:
    """A table whose columns lie where the payload does, and keep its lease."""
    import pyarrow as pa

    payload = client.acquire(id, **options)
    try:
        return pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
    except pa.ArrowInvalid as error:
        raise FailedPrecondition(f"payload {id} is no table of put_table: {error}") from None


def _write(sink: Any, table: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
