"""A server that ends while its clients call: errors within a second, and mapped bytes stay readable."""

import os
import signal
import subprocess
import sys
import threading
import time
import unittest

import numpy as np
import payload_manager as pm
from harness import Server, until


class Death(unittest.TestCase):
    def test_given_a_killed_server_when_calls_wait_then_errors_and_mapped_bytes_stay(self):
        for native in (True, False):
            with self.subTest(native=native):
                self.killed_once(native)

    def killed_once(self, native):
        server = Server()
        self.addCleanup(server.stop)
        client = pm.connect(server.address, native=native)
        id = client.put(np.arange(1000, dtype="i8"))
        array = np.frombuffer(client.acquire(id), dtype="i8")
        writer = client.allocate(100)
        client.streams.create("s")
        subscription = client.streams.subscribe("s")
        ended = {}

        def wait(name, call):
            try:
                call()
                ended[name] = "done"
            except pm.PayloadError as error:
                ended[name] = error

        calls = {
            "spill": lambda: client.spill(id, wait_for_leases=True),
            "next": lambda: subscription.next(),
        }
        threads = [threading.Thread(target=wait, args=call) for call in calls.items()]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        self.assertEqual(ended, {})
        server.kill()
        start = time.monotonic()
        for thread in threads:
            thread.join(20)
        self.assertEqual(set(ended), set(calls))
        self.assertLess(time.monotonic() - start, 10, "within a second, and a margin for a busy machine")
        for error in ended.values():
            self.assertIsInstance(error, (ConnectionError, pm.Unavailable))
        with self.assertRaises((ConnectionError, pm.Unavailable)):
            client.acquire(id)
        with self.assertRaises((ConnectionError, pm.Unavailable)):
            writer.commit()
        self.assertEqual(int(array.sum()), 499_500)
        del array
        client.close()

    def test_given_a_killed_client_when_looked_at_then_what_it_held_comes_back(self):
        server = Server()
        self.addCleanup(server.stop)
        program = (
            "import sys, time, payload_manager as pm\n"
            "client = pm.connect(sys.argv[1])\n"
            "id = client.put(b'x' * 100)\n"
            "held = [client.acquire(id), client.allocate(5000)]\n"
            "print('held', flush=True)\n"
            "time.sleep(60)\n"
        )
        client = pm.connect(server.address)

        def held():
            stats = client.stats()
            node = stats["node"]
            return node["leases"] + node["direct_leases"], stats["tiers"]["ram"]["uncommitted_bytes"]

        before = held()
        with subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE) as other:
            self.assertEqual(other.stdout.readline(), b"held\n")
            self.assertNotEqual(held(), before)
            other.kill()
        until(lambda: held() == before, "its lease and its space come back")
        client.close()

    def test_given_ctrl_c_when_a_call_over_grpc_waits_then_it_ends_with_keyboard_interrupt(self):
        server = Server()
        self.addCleanup(server.stop)
        client = pm.connect(server.address)
        client.streams.create("s")
        subscription = client.streams.subscribe("s")
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with self.assertRaises(KeyboardInterrupt):
            subscription.next()
        id = client.put(b"goes on")
        client.streams.append("s", id)
        self.assertEqual(subscription.next(timeout=5.0).id, id)
        client.close()

    def test_given_ctrl_c_when_a_call_over_either_path_waits_then_it_ends_and_the_client_goes_on(self):
        server = Server()
        self.addCleanup(server.stop)
        for native in (True, False):
            with self.subTest(native=native):
                client = pm.connect(server.address, native=native)
                id = client.put(b"held", memory="segment")
                held = client.acquire(id)
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                start = time.monotonic()
                with self.assertRaises(KeyboardInterrupt):
                    client.spill(id, wait_for_leases=True)
                self.assertLess(time.monotonic() - start, 10, "long before the call's own end")
                self.assertEqual(client.info(id).nbytes, 4)
                held.release()
                client.close()


if __name__ == "__main__":
    unittest.main()
