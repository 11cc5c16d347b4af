"""The steps of `tests/gpu/run`. Needs nothing but Python's own library; device.py's workers need cupy and torch.

    suite --payloadctl--> server (payload-manager, or gpu_server with --fake)
      '----tasks----> workers (device.py): a producer and readers, each a process with an own CUDA context
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import device  # noqa: E402

MIB = 1 << 20
PATIENCE_S = 60
# What a spill or a promotion must have of a pinned copy's bandwidth, from 16 MiB on.
SHARE = 0.9


class Failed(Exception):
    """A promise was broken."""


def check(holds, sentence):
    if not holds:
        raise Failed(sentence)


class Server:
    """One data directory, and the servers started on it one after the other."""

    def __init__(self, bin_dir, program, device_id, capacity):
        self.bin = bin_dir
        self.program = program
        self.directory = Path(tempfile.mkdtemp(prefix="pm-gpu-"))
        self.prefix = f"pmgpu-{os.getpid()}"
        self.settings = {
            "SERVER__BIND_ADDRESS": "127.0.0.1:0",
            "SHARDS__COUNT": "2",
            "STORAGE__RAM__SHM_PREFIX": self.prefix,
            "STORAGE__RAM__CAPACITY_BYTES": str(max(4 * capacity, 512 * MIB)),
            "STORAGE__DISK__CAPACITY_BYTES": str(max(4 * capacity, 512 * MIB)),
            "STORAGE__GPU__DEVICES__0__DEVICE_ID": str(device_id),
            "STORAGE__GPU__DEVICES__0__CAPACITY_BYTES": str(capacity),
            "LEASES__MAX_LEASE": "3s",
            "LEASES__DEFAULT_LEASE": "3s",
            "LEASES__ALLOCATION_TIMEOUT": "3s",
        }
        self.process = None

    def environment(self):
        own = {name: value for name, value in os.environ.items() if not name.startswith("PAYLOAD_MANAGER")}
        return own | {f"PAYLOAD_MANAGER__{name}": value for name, value in self.settings.items()}

    def start(self):
        command = [self.bin / self.program, "--data-dir", self.directory, "serve"]
        log = open(self.directory / "log", "ab")
        self.process = subprocess.Popen(command, env=self.environment(), stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        check("listening on" in line, f"the server does not listen: {self.log()}")
        self.address = line.split()[-1]

    def log(self):
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def doctor(self):
        command = [self.bin / "payload-manager", "--data-dir", self.directory, "doctor", "--json"]
        out = subprocess.run(command, env=self.environment(), capture_output=True, text=True).stdout
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return next(row for row in rows if row["check"] == "GPU")

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE_S)
        check(how == signal.SIGKILL or code == 0, f"the server ended with {code}: {self.log()}")

    def clean(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        for name in os.listdir("/dev/shm"):
            if name.startswith(self.prefix):
                os.unlink(f"/dev/shm/{name}")

    def ask(self, *arguments):
        """What payloadctl answers, a dictionary a line."""
        code, rows, said = self.try_ask(*arguments)
        check(code == 0, f"payloadctl {' '.join(map(str, arguments))}: {said}")
        return rows

    def try_ask(self, *arguments):
        command = [self.bin / "payloadctl", *map(str, arguments), "--json"]
        environment = os.environ | {"PAYLOAD_MANAGER_ADDR": self.address}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        return run.returncode, rows, (run.stderr + run.stdout).strip()

    def used(self):
        return self.ask("stats")[0]["tiers"]["gpu"]["allocated_bytes"]


class Worker:
    """A process with a CUDA context of its own."""

    def __init__(self, kind):
        command = [sys.executable, HERE / "device.py", kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        check(answer, f"the worker ended at: {words[0]}")
        return [float(word) if words[0] == "floor" else int(word) for word in answer[1:]]

    def kill(self):
        self.process.kill()
        self.process.wait()


def eventually(what, look):
    end = time.monotonic() + PATIENCE_S
    while not look():
        check(time.monotonic() < end, f"not within {PATIENCE_S} s: {what}")
        time.sleep(0.02)


class Suite:
    """Every step leaves the tier as it found it."""

    def __init__(self, server, kind, device_id, capacity):
        self.server, self.kind, self.device, self.capacity = server, kind, device_id, capacity
        self.producer, self.reader = Worker(kind), Worker(kind)

    def place(self, row):
        check("gpu" in row, f"it is not on the device: {row}")
        gpu = row["gpu"]
        return gpu["device_id"], gpu["ipc_handle"], gpu["length_bytes"]

    def put(self, size, seed, worker=None):
        row = self.server.ask("allocate", size, "--tier", "gpu")[0]
        crc = (worker or self.producer).ask("write", *self.place(row), seed)[0]
        self.server.ask("commit", row["id"])
        return row["id"], crc

    def read(self, id, *options):
        row = self.server.ask("lease", id, *options)[0]
        found = self.reader.ask("read", *self.place(row))[0]
        self.server.ask("release", row["lease_id"])
        return found

    def round_trip(self):
        for size in (1, 4096, 5 * MIB + 123):
            id, crc = self.put(size, 7)
            check(self.read(id) == crc, f"{size} bytes: the reader sees others than the producer wrote")
            self.server.ask("rm", id)
        return "1 B, 4 KiB, 5 MiB"

    def spill_and_promote(self):
        id, crc = self.put(self.capacity // 4, 11)
        for tier in ("ram", "disk"):
            self.server.ask("spill", id, "--to", tier)
            row = self.server.ask("stat", id)[0]
            check(row["tier"].lower() == tier, f"spilled to {tier}, and it is on {row['tier']}")
            check(self.read(id, "--tier", "gpu") == crc, f"back from {tier} its bytes are others")
        self.server.ask("rm", id)
        return "GPU > RAM > GPU > DISK > GPU"

    def pressure(self):
        payloads = [self.put(self.capacity // 8, seed) for seed in range(100, 124)]
        tiers = [self.server.ask("stat", id)[0]["tier"].upper() for id, _ in payloads]
        check("GPU" in tiers and len(set(tiers)) > 1, f"three times what fits lies on {set(tiers)}")
        for id, crc in payloads:
            check(self.read(id, "--tier", "gpu") == crc, "a payload that was evicted has other bytes")
        self.server.ask("rm", *(id for id, _ in payloads))
        return f"24 payloads of an eighth; at the end {tiers.count('GPU')} on GPU"

    def producer_dies(self):
        worker = Worker(self.kind)
        row = self.server.ask("allocate", self.capacity // 2, "--tier", "gpu")[0]
        worker.ask("write", *self.place(row), 5)
        worker.kill()
        eventually("what was never committed is free", lambda: self.server.used() == 0)
        return "reclaimed after leases.allocation_timeout"

    def consumer_dies(self):
        worker = Worker(self.kind)
        id, crc = self.put(self.capacity // 2, 6)
        row = self.server.ask("lease", id)[0]
        check(worker.ask("hold", *self.place(row))[0] == crc, "the holder sees other bytes")
        self.server.ask("rm", "--force", id)
        check(self.server.used() > 0, "memory was freed under a lease")
        worker.kill()
        eventually("what a dead reader leased is free", lambda: self.server.used() == 0)
        return "freed when its lease ended"

    def server_dies(self):
        lost, _ = self.put(MIB, 8)
        kept, crc = self.put(MIB, 9)
        self.server.ask("spill", kept, "--to", "disk")
        self.server.ask("promote", kept, "gpu")
        self.server.end(signal.SIGKILL)
        self.server.start()
        code, _, said = self.server.try_ask("stat", lost)
        check(code != 0 and "LOST" in said, f"what was on the device alone: {said}")
        check(self.read(kept, "--tier", "gpu") == crc, "what has a file came back with other bytes")
        saved, crc = self.put(MIB, 10)
        self.server.end()
        self.server.start()
        check(self.read(saved, "--tier", "gpu") == crc, "a graceful stop lost a payload")
        self.server.ask("rm", kept, saved)
        return "kill -9: LOST, and the file serves; stop: spilled"

    def bandwidth(self):
        size, count = min(256 * MIB, self.capacity // 8), 6
        to_host, from_host = self.reader.ask("floor", self.device, size)
        payloads = [self.put(size, seed)[0] for seed in range(count)]
        measured = []
        for rounds, (verb, floor) in enumerate((("spill", to_host), ("promote", from_host))):
            began = time.perf_counter()
            self.server.ask(*(["spill", *payloads, "--to", "ram"] if verb == "spill" else ["promote", *payloads, "gpu"]))
            rate = size * count / (time.perf_counter() - began)
            measured.append((verb, rate, floor))
        self.server.ask("rm", *payloads)
        said = ", ".join(f"{verb} {rate / 1e9:.1f} GB/s ({rate / floor:.2f}x)" for verb, rate, floor in measured)
        slow = [verb for verb, rate, floor in measured if rate < SHARE * floor]
        check(not slow, f"{said}; wanted {SHARE}x of a pinned copy")
        return said

    STEPS = [
        ("round trip, two processes", round_trip),
        ("spill and promote", spill_and_promote),
        ("eviction under pressure", pressure),
        ("producer killed", producer_dies),
        ("consumer killed", consumer_dies),
        ("server killed and stopped", server_dies),
        ("bandwidth", bandwidth),
    ]


def dry(server):
    """All there is before the first call of a driver."""
    server.start()
    row = server.doctor()
    print(f"doctor: {row['status']}: {row['detail']}; {row['fix']}")
    code, _, said = server.try_ask("allocate", 4096, "--tier", "gpu")
    reason = device.driver()
    if reason is None:
        check(code == 0, f"there is a device, and the tier is refused: {said}")
    else:
        check(code != 0 and "GPU" in said, f"no device, and allocate says: {said}")
        print(f"driver: {reason}\nallocate: {said}")
    server.end()
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--capacity", type=int, help="bytes of the device that the tier may use")
    options = parser.parse_args()
    capacity = options.capacity or (16 * MIB if options.fake else 4096 * MIB)
    kind, program = ("fake", "gpu_server") if options.fake else ("cuda", "payload-manager")
    server = Server(options.bin.resolve(), program, options.device, capacity)
    failures = 0
    try:
        if options.dry:
            return dry(server)
        if not options.fake and (reason := device.driver()):
            print(f"tests/gpu/run: {reason}; the suite needs a GPU (or --fake, or --dry)", file=sys.stderr)
            return 1
        server.start()
        suite = Suite(server, kind, options.device, capacity)
        print(f"{'STEP':<28} {'':<6} {'SECONDS':>8}  FOUND")
        for name, step in Suite.STEPS:
            if options.fake and step is Suite.bandwidth:
                print(f"{name:<28} {'-':<6} {'':>8}  a fake device has none")
                continue
            began = time.monotonic()
            try:
                word, found = "ok", step(suite)
            except Exception as error:  # every step is tried
                failures += 1
                word, found = "FAILED", str(error) or traceback.format_exc()
            print(f"{name:<28} {word:<6} {time.monotonic() - began:>8.1f}  {found}", flush=True)
        server.end()
    except Failed as error:
        print(f"tests/gpu/run: {error}", file=sys.stderr)
        failures += 1
    finally:
        server.clean()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
