"""A real server for the tests: a process of its own on a free port, with its own files and shared memory."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from typing import Callable

import payload_manager as pm

PROGRAM = os.environ.get(
    "PAYLOAD_MANAGER_PROGRAM",
    os.path.join(os.path.dirname(__file__), "../../../target/release/payload-manager"),
)
ANNOUNCEMENT = "payload-manager listening on "
START_WITHIN = 30.0


class Server:
    """A running server. ``stop`` ends it and removes what it left."""

    def __init__(self, ram: str = "256MiB", disk: str = "256MiB") -> None:
        self.directory = tempfile.mkdtemp(prefix="pm-python-")
        self.prefix = "pmpy-" + os.path.basename(self.directory)[-8:].replace("_", "x")
        config = os.path.join(self.directory, "config.yaml")
        with open(config, "w") as file:
            file.write(
                f"server: {{bind_address: '127.0.0.1:0'}}\n"
                f"storage:\n"
                f"  ram: {{capacity_bytes: {ram}, shm_prefix: {self.prefix}}}\n"
                f"  disk: {{capacity_bytes: {disk}, root_path: {self.directory}/disk}}\n"
            )
        self.socket = os.path.join(self.directory, "native.sock")
        with open(config, "a") as file:
            file.write(f"local: {{socket_path: {self.socket}}}\n")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PAYLOAD_MANAGER")}
        self.log = open(os.path.join(self.directory, "log"), "wb")
        self.process = subprocess.Popen(
            [PROGRAM, "--config", config, "--data-dir", os.path.join(self.directory, "data")],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        self.address = self._listening()

    def _listening(self) -> str:
        for line in self.process.stdout:
            if line.strip().startswith(ANNOUNCEMENT):
                return line.strip()[len(ANNOUNCEMENT) :]
        self.process.wait(START_WITHIN)
        with open(self.log.name) as log:
            raise RuntimeError(f"the server does not listen: {log.read()[-2000:]}")

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ends it, and removes what it left."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.stdout.close()
        self.log.close()
        for left in glob.glob(f"/dev/shm/{self.prefix}*"):
            os.unlink(left)
        shutil.rmtree(self.directory, ignore_errors=True)


def until(holds: Callable[[], bool], what: str, within: float = 10.0) -> None:
    """Waits until something holds; fails with ``what`` when it never does."""
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {within} s")
        time.sleep(0.01)


class WithServer(unittest.TestCase):
    """One server for the tests of a class, and a client of each way to it."""

    server: Server
    client: pm.Client
    remote: pm.Client

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.client = pm.connect(cls.server.address, timeout=20.0)
        cls.addClassCleanup(cls.client.close)
        cls.remote = pm.connect(cls.server.address, timeout=20.0, native=False)
        cls.addClassCleanup(cls.remote.close)

    def both(self):
        """Each way to the server."""
        for client in (self.client, self.remote):
            with self.subTest(client=repr(client)):
                yield client

    def leases(self) -> int:
        """How many leases the server counts, and how many are held without asking it."""
        node = self.remote.stats()["node"]
        return node["leases"] + node["direct_leases"]

    def uncommitted(self) -> int:
        """How many bytes are allocated and not committed."""
        return self.remote.stats()["tiers"]["ram"]["uncommitted_bytes"]
