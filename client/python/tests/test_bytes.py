"""Payloads as bytes: written in place, read in place, and how long their memory and leases live."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import unittest
import uuid

import numpy as np
import payload_manager as pm
from harness import WithServer, until


class Bytes(WithServer):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.other = pm.connect(cls.server.address, native=True)
        cls.addClassCleanup(cls.other.close)

    def test_given_a_payload_written_in_place_when_acquired_then_the_same_bytes_in_every_form_of_its_id(self):
        for client in self.both():
            with client.allocate(8192, tier="ram", ttl=60.0) as writer:
                self.assertEqual((len(writer), writer.nbytes, writer.committed), (8192, 8192, False))
                writer.view()[:5] = b"hello"
                writer.view()[8187:] = b"world"
                id = writer.commit()
                self.assertTrue(writer.committed)
            self.assertIsInstance(id, uuid.UUID)
            self.assertEqual(writer.id, id)
            for form in (id, str(id), id.bytes, id.hex):
                with client.acquire(form, min_tier="ram", timeout=5.0) as payload:
                    self.assertEqual((payload.id, len(payload), payload.tier), (id, 8192, "ram"))
                    self.assertEqual(bytes(payload), b"hello" + bytes(8182) + b"world")
                    self.assertIn(str(id), repr(payload))

    def test_given_a_payload_when_read_then_read_only_without_a_copy_and_a_copy_is_writable(self):
        for client in self.both():
            id = client.put(np.arange(1000, dtype="f4"))
            with client.acquire(id) as payload:
                view = payload.view()
                self.assertTrue(view.readonly)
                with self.assertRaises(TypeError):
                    view[0] = 1
                array = np.frombuffer(payload, dtype="f4")
                self.assertFalse(array.flags.writeable)
                again = np.frombuffer(payload, dtype="f4")
                self.assertEqual(array.ctypes.data, again.ctypes.data)
                copy = payload.copy()
                self.assertIsInstance(copy, bytearray)
                copy[:4] = b"\0\0\0\1"
                np.testing.assert_array_equal(array, np.arange(1000, dtype="f4"))

    def test_given_anything_with_a_buffer_when_put_then_its_bytes_are_there(self):
        sources = [b"bytes", bytearray(b"array"), memoryview(b"view")[1:], np.eye(3), np.asfortranarray(np.ones((2, 3)))]
        for client in self.both():
            for source in sources:
                with client.get(client.put(source)) as payload:
                    self.assertEqual(bytes(payload), memoryview(source).tobytes(order="A"))
            big = os.urandom(3 << 20)
            id = client.put(big, tier="disk")
            self.assertEqual(bytes(client.get(id)), big)
            self.assertEqual(client.info(id).tier, "disk")

    def test_given_a_second_process_when_it_acquires_then_it_reads_what_the_first_wrote(self):
        program = (
            "import sys, numpy as np, payload_manager as pm\n"
            "client = pm.connect(sys.argv[1])\n"
            "with client.acquire(sys.argv[2]) as payload:\n"
            "    print(int(np.frombuffer(payload, dtype='i8').sum()), client.is_native)\n"
        )
        id = self.client.put(np.arange(10_000, dtype="i8"))
        for target in (self.server.address, self.server.socket):
            said = subprocess.run(
                [sys.executable, "-c", program, target, str(id)], capture_output=True, text=True, check=True
            )
            self.assertEqual(said.stdout.split(), ["49995000", "True"])

    def test_given_views_when_the_block_is_left_then_they_stay_and_the_lease_ends_with_the_last(self):
        for client in self.both():
            id = client.put(np.full(100_000, 7, dtype="i8"))
            before = self.leases()
            with client.acquire(id) as payload:
                array = np.frombuffer(payload, dtype="i8")
                part = memoryview(payload)[8:16]
            self.assertTrue(payload.released)
            for attempt in (payload.view, payload.copy, payload.prepare, lambda: np.frombuffer(payload)):
                with self.assertRaises(pm.Released):
                    attempt()
            self.assertEqual((int(array.sum()), bytes(part)), (700_000, (7).to_bytes(8, "little")))
            self.assertEqual(self.leases(), before + 1)
            with self.assertRaises(pm.LeaseConflict):
                client.delete(id)
            del array
            self.assertEqual(self.leases(), before + 1)
            del part
            until(lambda: self.leases() == before, "the lease ends with its last view")
            client.delete(id)

    def test_given_dropped_payloads_when_counted_then_no_lease_and_no_space_leaks(self):
        id = self.client.put(b"x" * 5000)
        leases, uncommitted = self.leases(), self.uncommitted()
        for client in self.both():
            for round in range(200):
                payload = client.acquire(id)
                if round % 3 == 0:
                    memoryview(payload)[0]
                elif round % 3 == 1:
                    np.frombuffer(payload, dtype="u1")
                writer = client.allocate(5000)
                if round % 2:
                    writer.view()[:1] = b"y"
            del payload, writer
        gc.collect()
        until(lambda: (self.leases(), self.uncommitted()) == (leases, uncommitted), "leases and space come back")

    def test_given_an_exception_in_a_block_when_left_then_it_goes_on_and_the_space_comes_back(self):
        uncommitted = self.uncommitted()
        for client in self.both():
            with self.assertRaises(ZeroDivisionError):
                with client.allocate(4096) as writer:
                    writer.view()[0] = 1
                    1 / 0
            until(lambda: self.uncommitted() == uncommitted, "the space comes back")
            for attempt in (writer.view, writer.commit, lambda: np.frombuffer(writer)):
                with self.assertRaisesRegex(pm.Released, "given back"):
                    attempt()
            with self.assertRaises(pm.NotFound):
                client.acquire(writer.id)
            writer.abort()

    def test_given_an_array_over_a_writer_when_committed_then_refused_until_it_is_gone(self):
        for client in self.both():
            with client.allocate(4096) as writer:
                view = writer.view()
                self.assertIs(writer.view(), view)
                array = np.frombuffer(writer, dtype="i4")
                array[:] = 3
                with self.assertRaisesRegex(pm.ViewsAlive, "1 views"):
                    writer.commit()
                with self.assertRaises(ValueError):
                    view[0]
                del array
                id = writer.commit()
                with self.assertRaisesRegex(pm.Released, "never change"):
                    writer.view()
                with self.assertRaises(pm.Released):
                    writer.commit()
            self.assertEqual(int(np.frombuffer(client.get(id), dtype="i4").sum()), 3072)

    def test_given_a_view_of_an_aborted_writer_when_written_then_nothing_crashes_and_the_space_comes_back(self):
        uncommitted = self.uncommitted()
        for client in self.both():
            with client.allocate(1 << 20) as writer:
                array = np.frombuffer(writer, dtype="u1")
            array[:] = 9
            self.assertEqual(int(array[-1]), 9)
            del array
            until(lambda: self.uncommitted() == uncommitted, "the space comes back")

    def test_given_a_forced_delete_when_leased_then_what_is_mapped_stays_readable(self):
        for client in self.both():
            id = client.put(b"still here" * 1000)
            with client.acquire(id) as payload:
                with self.assertRaises(pm.LeaseConflict):
                    client.delete(id)
                client.delete(id, force=True)
                self.assertEqual(bytes(payload)[:10], b"still here")
            with self.assertRaises(pm.NotFound):
                client.acquire(id)

    def test_given_each_kind_of_memory_when_written_then_every_client_reads_it_and_leases_end(self):
        leases = self.leases()
        self.assertFalse(self.remote.has_arenas)
        for memory in ("segment", "arena", "sealed"):
            if memory != "segment" and not self.client.has_arenas:
                with self.assertRaises(pm.InvalidArgument):
                    self.client.allocate(10, memory=memory)
                continue
            for nbytes in (1, 4096, 3 << 20):
                with self.subTest(memory=memory, nbytes=nbytes):
                    data = os.urandom(nbytes)
                    with self.client.allocate(nbytes, memory=memory) as writer:
                        np.frombuffer(writer, dtype="u1")[:] = np.frombuffer(data, dtype="u1")
                        id = writer.commit()
                    for client in (self.client, self.other, self.remote):
                        with client.acquire(id) as payload:
                            array = np.frombuffer(payload, dtype="u1")
                        self.assertEqual(array.tobytes(), data)
                        self.assertTrue(array.ctypes.data % min(64, nbytes & -nbytes) == 0)
                        with self.assertRaises(ValueError):
                            array[0] = 1
                        del array
                    until(lambda: self.leases() == leases, "leases end")
                    self.assertEqual(bytes(self.client.get(self.client.put(data, memory=memory))), data)
                    self.client.delete(id)

    def test_given_a_commit_that_is_only_accepted_when_acquired_then_it_is_there_and_becomes_durable(self):
        for client in self.both():
            with client.allocate(100) as writer:
                with self.assertRaises(pm.FailedPrecondition):
                    writer.durable()
                with self.assertRaisesRegex(pm.InvalidArgument, "soon"):
                    writer.commit(wait="soon")
                writer.view()[:] = b"a" * 100
                id = writer.commit(wait="accepted")
                self.assertEqual(bytes(client.get(id)), b"a" * 100)
                writer.durable()
                writer.durable()
            self.assertEqual(self.remote.info(id).state, "active")

    def test_given_a_forced_delete_when_the_lease_is_asked_then_it_is_not_valid_and_readable(self):
        for client in self.both():
            id, other = client.put(b"v" * 5000), client.put(b"stays")
            payload, kept = client.acquire(id), client.acquire(other)
            self.assertTrue(payload.is_valid() and kept.is_valid())
            self.remote.delete(id, force=True)
            # Servers tell sessions of revoked leases since they have arenas.
            if client.has_arenas or not client.is_native:
                until(lambda: not payload.is_valid(), "the lease is not valid")
            self.assertTrue(kept.is_valid())
            self.assertEqual(bytes(payload), b"v" * 5000)
            payload.release()
            with self.assertRaises(pm.Released):
                payload.is_valid()

    def test_given_bad_input_when_called_then_an_exception_says_what_to_do(self):
        unknown = uuid.uuid4()
        cases = [
            (lambda c: c.acquire("no id"), pm.InvalidArgument, "payload id"),
            (lambda c: c.acquire(b"short"), pm.InvalidArgument, "16 bytes"),
            (lambda c: c.acquire(7), pm.InvalidArgument, "uuid.UUID"),
            (lambda c: c.acquire(unknown), pm.NotFound, str(unknown)),
            (lambda c: c.acquire(unknown, min_tier="tape"), pm.InvalidArgument, "tape"),
            (lambda c: c.acquire(unknown, timeout=-1.0), pm.InvalidArgument, "timeout"),
            (lambda c: c.acquire(unknown, timeout=float("nan")), pm.InvalidArgument, "timeout"),
            (lambda c: c.acquire(unknown, promotion="soon"), pm.InvalidArgument, "soon"),
            (lambda c: c.allocate(0), pm.InvalidArgument, "size"),
            (lambda c: c.allocate(-1), pm.InvalidArgument, "nbytes"),
            (lambda c: c.allocate(1.5), pm.InvalidArgument, "nbytes"),
            (lambda c: c.allocate(1 << 70), pm.InvalidArgument, "nbytes"),
            (lambda c: c.allocate(1 << 35), pm.ResourceExhausted, ""),
            (lambda c: c.allocate(10, tier="object"), pm.FailedPrecondition, "OBJECT"),
            (lambda c: c.allocate(10, priority="urgent"), pm.InvalidArgument, "urgent"),
            (lambda c: c.allocate(10, memory="stack"), pm.InvalidArgument, "stack"),
            (lambda c: c.put(b""), pm.InvalidArgument, "size"),
            (lambda c: c.put("text"), TypeError, "buffer|bytes-like"),
            (lambda c: c.put(np.arange(10)[::2]), pm.InvalidArgument, "one piece"),
            (lambda c: c.delete(unknown), pm.NotFound, str(unknown)),
            (lambda c: c.spill(unknown), pm.PayloadError, ""),
            (lambda c: list(c.find(color="red")), TypeError, "color"),
        ]
        for client in self.both():
            for number, (call, error, words) in enumerate(cases):
                with self.subTest(case=number), self.assertRaisesRegex(error, words):
                    call(client)
        self.assertTrue(issubclass(pm.NotFound, pm.PayloadError) and issubclass(pm.LeaseConflict, pm.PayloadError))

    def test_given_a_closed_client_when_used_then_an_exception_and_its_leases_go_on(self):
        client = pm.connect(self.server.address)
        payload = client.acquire(client.put(b"kept"))
        with client as same:
            self.assertIs(same, client)
        with self.assertRaisesRegex(pm.Closed, "connect again"):
            client.put(b"more")
        self.assertEqual(bytes(payload), b"kept")
        client.close()

    def test_given_nobody_listens_when_connected_then_an_exception_says_where(self):
        with self.assertRaisesRegex(pm.ConnectionFailed, "127.0.0.1:1"):
            pm.connect("127.0.0.1:1")
        with self.assertRaises(pm.ConnectionFailed):
            pm.connect("/nowhere/native.sock")
        with self.assertRaises(pm.InvalidArgument):
            pm.connect("nonsense")

    def test_given_threads_when_they_share_a_client_then_all_see_right_bytes(self):
        ids = [self.client.put(bytes([n]) * 4096) for n in range(16)]
        wrong = []

        def work(client, seed):
            for turn in range(100):
                n = (seed * 7 + turn) % 16
                with client.acquire(ids[n]) as payload:
                    if np.frombuffer(payload, dtype="u1").min() != n:
                        wrong.append(n)

        for client in self.both():
            threads = [threading.Thread(target=work, args=(client, seed)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])

    def test_given_a_fork_when_the_child_calls_then_clear_errors_and_the_parent_goes_on(self):
        for client in self.both():
            payload = client.acquire(client.put(b"parent's"))
            writer = client.allocate(100)
            context = multiprocessing.get_context("fork")
            answers = context.Queue()

            def child():
                said = []
                for attempt in (
                    lambda: client.put(b"child's"),
                    payload.view,
                    payload.copy,
                    writer.view,
                    writer.commit,
                    lambda: client.stats(),
                    lambda: client.count(),
                ):
                    try:
                        attempt()
                        said.append("done")
                    except pm.PayloadError as error:
                        said.append(type(error).__name__)
                own = pm.connect(self.server.address)
                said.append(bytes(own.get(payload.id)).decode())
                client.close()
                payload.release()
                writer.abort()
                answers.put(said)

            process = context.Process(target=child)
            process.start()
            said = answers.get(timeout=30)
            process.join(30)
            self.assertEqual((said, process.exitcode), (["Forked"] * 7 + ["parent's"], 0))
            self.assertEqual(bytes(payload), b"parent's")
            writer.view()[:] = b"w" * 100
            writer.commit()
            payload.release()

    def test_given_an_interpreter_that_ends_when_it_holds_things_then_it_exits_quietly_and_they_come_back(self):
        leases, uncommitted = self.leases(), self.uncommitted()
        program = (
            "import sys, threading, time, numpy as np, payload_manager as pm\n"
            "client = pm.connect(sys.argv[1], native=None if sys.argv[2] == 'native' else False)\n"
            "id = client.put(b'x' * 100000)\n"
            "held = [client.acquire(id), np.frombuffer(client.acquire(id), dtype='u1'), client.allocate(5000)]\n"
            "held.append(held)\n"
            "loop = threading.Thread(target=lambda: [client.acquire(id) for _ in range(10**9)], daemon=True)\n"
            "loop.start()\n"
            "time.sleep(0.2)\n"
        )
        for way in ("native", "grpc"):
            with self.subTest(way=way):
                ended = subprocess.run(
                    [sys.executable, "-c", program, self.server.address, way], capture_output=True, text=True, timeout=60
                )
                self.assertEqual((ended.returncode, ended.stderr), (0, ""))
                if way == "native":
                    both = lambda: (self.leases(), self.uncommitted()) == (leases, uncommitted)
                    until(both, "what it held comes back")


class Placement(WithServer):
    def test_given_a_payload_when_spilled_and_promoted_then_its_tier_changes_and_its_bytes_do_not(self):
        for client in self.both():
            data = os.urandom(100_000)
            id = client.put(data)
            self.assertEqual(client.spill(id, to="disk", fsync=True).tier, "disk")
            with client.acquire(id) as payload:
                self.assertEqual((payload.tier, bytes(payload)), ("disk", data))
            self.assertEqual(client.promote(id, "ram").tier, "ram")
            with client.acquire(id, min_tier="ram") as payload:
                self.assertEqual((payload.tier, bytes(payload)), ("ram", data))
            first, second = client.spill([id, uuid.uuid4()])
            self.assertTrue(first.ok and first.info.tier == "disk" and first.id == id)
            self.assertTrue(not second.ok and second.error)
            client.prefetch(id)
            self.assertIsNone(client.spill(client.put(b"gone"), to="void"))

    def test_given_a_pin_when_spilled_then_refused_until_it_ends(self):
        id = self.client.put(b"pinned")
        self.client.pin(id, 60.0)
        with self.assertRaisesRegex(pm.FailedPrecondition, "pin"):
            self.client.spill(id)
        self.client.unpin(id)
        self.assertEqual(self.client.spill(id).tier, "disk")

    def test_given_payloads_when_listed_and_found_then_each_is_there_once(self):
        ids = [self.client.put(bytes([n])) for n in range(7)]
        for client in self.both():
            listed = [info.id for info in client.list(page_size=3)]
            self.assertEqual([id for id in listed if id in ids], ids[::-1])
            self.assertEqual(len(listed), client.count())
        self.client.metadata.set(ids[3], {"lens": {"mm": 35}, "tags": {"set": "train"}}, "camera.v1")
        found = self.client.find(schema="camera.v1", fields={"lens.mm": 35}, tags={"set": "train"}, size_max=10)
        self.assertEqual([info.id for info in found], [ids[3]])
        info = self.client.info(ids[3])
        self.assertEqual((info.nbytes, info.state), (1, "active"))
        self.assertEqual(self.client.stats()["tiers"]["ram"]["payloads"], self.client.count("ram"))

    def test_given_a_ttl_when_it_passes_then_the_payload_is_gone(self):
        id = self.client.put(b"short", ttl=0.2)
        until(lambda: self.is_gone(id), "the payload expires")

    def is_gone(self, id):
        try:
            self.client.acquire(id).release()
        except pm.NotFound:
            return True
        return False

    def test_given_a_wrong_version_when_fenced_then_refused_naming_both(self):
        id = self.client.put(b"fenced")
        version = self.client.info(id).version
        for client in self.both():
            with self.assertRaisesRegex(pm.FailedPrecondition, str(version)):
                client.acquire(id, expected_version=version + 7)
            client.acquire(id, expected_version=version).release()


if __name__ == "__main__":
    unittest.main()
