"""Acquire + read + release of a numpy view, again and again: `python lease.py ADDRESS CORE ROUNDS SECONDS`.

Prints one line a round: the nanoseconds of each pass. `payload-bench python/lease` runs it, and reads that.
"""

import os
import random
import sys
import time

import numpy as np
import payload_manager as pm

PAYLOADS = 1000
PAYLOAD_BYTES = 4096


def main() -> None:
    address, core, rounds, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    if core >= 0:
        os.sched_setaffinity(0, {core})
    client = pm.connect(address, native=True)
    ids = [client.put(bytes([number % 256]) * PAYLOAD_BYTES) for number in range(PAYLOADS)]
    random.Random(7).shuffle(ids)
    clock, frombuffer = time.perf_counter_ns, np.frombuffer
    turn = 0
    # The first round warms up what it calls.
    for round in range(rounds + 1):
        passes = []
        end = clock() + int(seconds * 1e9)
        last = clock()
        while last < end:
            turn = (turn + 1) % PAYLOADS
            with client.acquire(ids[turn]) as payload:
                array = frombuffer(payload, dtype="u1")
                array[0]
            del array
            now = clock()
            passes.append(now - last)
            last = now
        if round > 0:
            print(*passes)


if __name__ == "__main__":
    main()
