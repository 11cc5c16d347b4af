"""numpy arrays, Arrow tables, and what is kept beside payloads."""

import datetime
import json
import time
import unittest
import uuid

import numpy as np
import payload_manager as pm
import pyarrow as pa
from harness import WithServer, until


class Arrays(WithServer):
    def test_given_arrays_when_put_and_got_then_the_same_in_place_and_read_only(self):
        structured = np.array([(1, 2.5, b"ab")], dtype=[("a", "<i4"), ("b", "<f8", (2,)), ("c", "S3")])
        arrays = [
            np.arange(12, dtype="f4").reshape(3, 4),
            np.asfortranarray(np.arange(12, dtype=">i2").reshape(3, 4)),
            np.arange(100)[::7],
            np.array(7.5),
            np.array(["2026-11-23"], dtype="M8[ms]"),
            np.array([True, False]),
            np.array([1 + 2j]),
            np.array(["text", "longer"]),
            structured,
        ]
        for client in self.both():
            for array in arrays:
                got = client.get_array(client.put_array(array, ttl=60.0))
                self.assertEqual((got.dtype, got.shape), (array.dtype, array.shape))
                np.testing.assert_array_equal(got, array)
                self.assertFalse(got.flags.writeable)
                self.assertFalse(got.flags.owndata)
                with self.assertRaises(ValueError):
                    got[...] = got
                got.copy()[...] = array

    def test_given_an_array_when_got_then_it_holds_the_lease_and_metadata_tell_what_it_is(self):
        id = self.client.put_array(np.zeros((2, 3), dtype="f4"))
        meta = self.client.metadata.get(id)
        self.assertEqual(meta.json(), {"dtype": "<f4", "shape": [2, 3], "order": "C"})
        leases = self.leases()
        array = self.client.get_array(id, min_tier="ram")[1:]
        self.assertEqual(self.leases(), leases + 1)
        with self.assertRaises(pm.LeaseConflict):
            self.client.delete(id)
        del array
        until(lambda: self.leases() == leases, "the lease ends with the array")
        self.client.spill(id)
        np.testing.assert_array_equal(self.client.get_array(id), np.zeros((2, 3)))

    def test_given_what_is_no_array_when_put_or_got_then_refused_and_nothing_is_left(self):
        uncommitted = self.uncommitted()
        for wrong in (np.array([object()]), np.zeros((0, 3))):
            with self.assertRaises(pm.InvalidArgument):
                self.client.put_array(wrong)
        plain = self.client.put(b"plain bytes")
        with self.assertRaisesRegex(pm.FailedPrecondition, "no metadata"):
            self.client.get_array(plain)
        self.client.metadata.set(plain, b"{}", "payload_manager.ndarray.v1")
        with self.assertRaisesRegex(pm.FailedPrecondition, "describe no array"):
            self.client.get_array(plain)
        words = {"dtype": "<f8", "shape": [100], "order": "C"}
        self.client.metadata.set(plain, words, "payload_manager.ndarray.v1")
        with self.assertRaises(pm.FailedPrecondition):
            self.client.get_array(plain)
        with self.assertRaises(pm.NotFound):
            self.client.get_array(uuid.uuid4())
        self.assertEqual(self.uncommitted(), uncommitted)


class Tables(WithServer):
    TABLE = pa.table(
        {
            "number": pa.array([1, 2, None], pa.int64()),
            "text": ["a", None, "ccc"],
            "word": pa.array(["x", "y", "x"]).dictionary_encode(),
            "when": pa.array([datetime.datetime(2026, 11, 23)] * 3, pa.timestamp("us")),
            "list": [[1.0], [], [2.0, 3.0]],
        }
    ).replace_schema_metadata({"made": "by a test"})

    def test_given_a_table_when_put_and_got_then_the_same_without_a_copy(self):
        for client in self.both():
            id = client.put_table(self.TABLE)
            allocated = pa.total_allocated_bytes()
            got = client.get_table(id)
            self.assertLess(pa.total_allocated_bytes() - allocated, 1024)
            self.assertTrue(got.equals(self.TABLE, check_metadata=True))
            got.validate(full=True)
            with client.acquire(id) as payload:
                self.assertEqual(len(pa.py_buffer(payload)), len(payload))

    def test_given_a_table_when_its_column_is_kept_then_the_lease_is_and_metadata_have_the_schema(self):
        id = self.client.put_table(self.TABLE)
        about = self.client.metadata.get(id).json()
        self.assertEqual((about["rows"], about["columns"]["number"]), (3, "int64"))
        leases = self.leases()
        column = self.client.get_table(id)["number"]
        self.assertEqual(self.leases(), leases + 1)
        self.assertEqual(column.to_pylist(), [1, 2, None])
        del column
        until(lambda: self.leases() == leases, "the lease ends with the column")

    def test_given_odd_tables_when_put_then_an_empty_one_works_and_what_is_none_is_refused(self):
        empty = self.TABLE.slice(0, 0)
        self.assertTrue(self.client.get_table(self.client.put_table(empty)).equals(empty))
        batch = self.TABLE.to_batches()[0]
        self.assertEqual(self.client.get_table(self.client.put_table(batch)).num_rows, 3)
        with self.assertRaises(pm.InvalidArgument):
            self.client.put_table([1, 2])
        with self.assertRaisesRegex(pm.FailedPrecondition, "no table"):
            self.client.get_table(self.client.put(b"plain bytes"))


class Records(WithServer):
    def test_given_metadata_when_changed_then_current_and_history_tell_so(self):
        id = self.client.put(b"described")
        self.assertIsNone(self.client.metadata.get(id))
        self.client.metadata.set(id, {"a": 1, "b": 2}, "s.v1", actor="me", reason="first")
        merged = self.client.metadata.merge(id, {"b": None, "c": [3]}, actor="me")
        self.assertEqual((merged.json(), merged.schema), ({"a": 1, "c": [3]}, "s.v1"))
        self.client.metadata.note(id, b"\0raw", "n.v1", source="sensor", version="2")
        self.assertEqual(self.client.metadata.get(id).json(), {"a": 1, "c": [3]})
        events = list(self.client.metadata.history(id))
        self.assertEqual([event.kind for event in events], ["replaced", "merged", "noted"])
        self.assertEqual((events[0].source, events[0].reason), ("me", "first"))
        self.assertEqual((events[2].data, events[2].source, events[2].version), (b"\0raw", "sensor", "2"))
        self.assertLess(abs(events[2].at - time.time()), 60)
        with self.assertRaises(pm.NotFound):
            self.client.metadata.get(uuid.uuid4())

    def test_given_lineage_when_walked_then_edges_both_ways(self):
        raw, crop, label = (self.client.put(bytes([n])) for n in range(3))
        self.client.lineage.add(crop, [raw], operation="crop")
        self.client.lineage.add(label, [crop, pm.Parent(raw, "see", "context", b"\1")], operation="label")
        up = self.client.lineage.upstream(label)
        self.assertEqual({(edge.child, edge.parent, edge.operation) for edge in up},
                         {(label, crop, "label"), (label, raw, "see"), (crop, raw, "crop")})
        self.assertEqual([edge.parameters for edge in up if edge.role == "context"], [b"\1"])
        self.assertEqual(len(self.client.lineage.upstream(label, depth=1)), 2)
        self.assertEqual(len(self.client.lineage.downstream(raw)), 3)

    def test_given_a_stream_when_appended_then_read_followed_and_committed(self):
        streams = self.client.streams
        ids = [self.client.put(bytes([n])) for n in range(4)]
        streams.create("cam/frames", max_entries=100, max_age=3600)
        with self.assertRaises(pm.AlreadyExists):
            streams.create("cam/frames")
        item = pm.Item(ids[0], event_time_ns=1_700_000_000_123_456_789, duration_ns=5, tags={"b": "2", "a": "1"})
        self.assertEqual(streams.append("cam/frames", [item, ids[1]]), range(0, 2))
        self.assertEqual(streams.append("cam/frames", str(ids[2])), range(2, 3))
        first, *rest = streams.read("cam/frames")
        self.assertEqual((first.offset, first.id, first.event_time_ns, first.duration_ns, first.tags),
                         (0, ids[0], 1_700_000_000_123_456_789, 5, {"a": "1", "b": "2"}))
        self.assertEqual([entry.id for entry in rest], ids[1:3])
        self.assertEqual([entry.offset for entry in streams.range("cam/frames", 1, 2)], [1, 2])
        with streams.subscribe("cam/frames", 2) as following:
            self.assertEqual(following.next(timeout=5.0).id, ids[2])
            with self.assertRaises(pm.DeadlineExceeded):
                following.next(timeout=0.05)
            streams.append("cam/frames", ids[3])
            self.assertEqual(next(following).id, ids[3])
        with self.assertRaises(pm.Closed):
            following.next()
        self.assertIsNone(streams.committed("cam/frames", "detector"))
        streams.commit("cam/frames", "detector", 3)
        self.assertEqual(streams.committed("cam/frames", "detector"), 3)
        self.assertEqual([(group.name, group.next) for group in streams.groups("cam/frames")], [("detector", 3)])
        info = [info for info in streams.list() if info.name == "cam/frames"][0]
        self.assertEqual((info.first, info.end, info.max_entries, info.max_age), (0, 4, 100, 3600.0))
        streams.remove_group("cam/frames", "detector")
        streams.delete("cam/frames")
        with self.assertRaises(pm.NotFound):
            streams.read("cam/frames")

    def test_given_a_socket_path_when_connected_then_everything_is_to_be_had(self):
        with pm.connect(self.server.socket) as client:
            self.assertTrue(client.is_native)
            id = client.put(b"by path")
            self.assertEqual(bytes(client.get(id)), b"by path")
            np.testing.assert_array_equal(client.get_array(client.put_array(np.arange(6))), np.arange(6))
            self.assertIn(id, [info.id for info in client.list()])
            json.dumps(client.stats())


if __name__ == "__main__":
    unittest.main()
