"""Device memory as a client of the contract opens it: by the 72 bytes of `GpuLocation.ipc_handle`.

`Cuda` is the real one: cupy opens the handle and writes, torch reads without a copy. `Fake` opens what `gpu_server` plays.
Both are used by worker processes (`python3 device.py KIND`), which take one task a line and answer with one line:

    write DEVICE HANDLE LENGTH SEED   opens, writes the pattern, waits until the device has it, closes -> written CRC
    read DEVICE HANDLE LENGTH         opens, reads all of it, closes                                  -> read CRC
    hold DEVICE HANDLE LENGTH         opens, and keeps it open                                        -> held CRC
    floor DEVICE LENGTH               pinned copies of this length, each way                          -> floor TO_HOST FROM_HOST
The pattern of a seed: 8-byte little-endian words (index * 0x9E3779B97F4A7C15 + seed), cut to the length. CRC is zlib's.
"""

import ctypes
import mmap
import os
import sys
import time
import zlib

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
FAKE_MARK = b"PMFAKE\x00\x01"


def split(handle, length):
    """The CUDA handle of 72 bytes, whose first 8 are the allocation's size."""
    handle = bytes.fromhex(handle)
    assert len(handle) == 72, f"the handle has {len(handle)} bytes; the contract says 72"
    size = int.from_bytes(handle[:8], "little", signed=True)
    assert size == length, f"the handle says {size} bytes, the location {length}"
    return handle[8:]


class Fake:
    """Host memory that `gpu_server` plays a device in."""

    def __init__(self):
        self.held = []

    def open(self, device, handle, length):
        handle = split(handle, length)
        assert handle[:8] == FAKE_MARK, "no handle of a fake device"
        pid, descriptor = (int.from_bytes(handle[at : at + 4], "little") for at in (8, 12))
        file = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR)
        assert os.fstat(file).st_size == length, "one allocation of exactly the payload"
        memory = mmap.mmap(file, length)
        os.close(file)
        return memory

    def write(self, device, handle, length, seed):
        memory = self.open(device, handle, length)
        words = ((index * GOLDEN + seed) & MASK for index in range((length + 7) // 8))
        pattern = b"".join(word.to_bytes(8, "little") for word in words)[:length]
        memory[:] = pattern
        memory.close()
        return zlib.crc32(pattern)

    def read(self, device, handle, length):
        memory = self.open(device, handle, length)
        found = zlib.crc32(memory)
        memory.close()
        return found

    def hold(self, device, handle, length):
        self.held.append(self.open(device, handle, length))
        return zlib.crc32(self.held[-1])

    def floor(self, device, length):
        raise NotImplementedError("a fake device has no bandwidth")


class Cuda:
    """A real device."""

    def __init__(self):
        import cupy

        self.cupy = cupy
        self.held = []

    def open(self, device, handle, length):
        self.cupy.cuda.Device(device).use()
        # 1: cudaIpcMemLazyEnablePeerAccess, which is what the runtime wants here.
        return self.cupy.cuda.runtime.ipcOpenMemHandle(split(handle, length), 1)

    def array(self, pointer, length):
        memory = self.cupy.cuda.UnownedMemory(pointer, length, None)
        return self.cupy.ndarray((length,), self.cupy.uint8, self.cupy.cuda.MemoryPointer(memory, 0))

    def close(self, pointer):
        self.cupy.cuda.runtime.ipcCloseMemHandle(pointer)

    def write(self, device, handle, length, seed):
        cupy = self.cupy
        pointer = self.open(device, handle, length)
        words = cupy.arange((length + 7) // 8, dtype=cupy.uint64) * cupy.uint64(GOLDEN) + cupy.uint64(seed)
        pattern = words.view(cupy.uint8)[:length]
        self.array(pointer, length)[:] = pattern
        # Commit orders nothing between processes: who wrote waits for his own work first.
        cupy.cuda.runtime.deviceSynchronize()
        crc = zlib.crc32(cupy.asnumpy(pattern))
        self.close(pointer)
        return crc

    def tensor(self, pointer, length):
        import torch

        class Shared:
            __cuda_array_interface__ = {
                "shape": (length,),
                "typestr": "|u1",
                "data": (pointer, True),
                "version": 3,
                "strides": None,
            }

        tensor = torch.as_tensor(Shared(), device=f"cuda:{self.cupy.cuda.Device().id}")
        assert tensor.data_ptr() == pointer, "torch copied it"
        return tensor

    def read(self, device, handle, length):
        pointer = self.open(device, handle, length)
        crc = zlib.crc32(self.tensor(pointer, length).cpu().numpy())
        self.close(pointer)
        return crc

    def hold(self, device, handle, length):
        pointer = self.open(device, handle, length)
        self.held.append(pointer)
        return zlib.crc32(self.tensor(pointer, length).cpu().numpy())

    def floor(self, device, length):
        """Bytes a second of pinned cudaMemcpyAsync, the best of five, to the host and from it."""
        cupy = self.cupy
        cupy.cuda.Device(device).use()
        on_device = cupy.empty(length, dtype=cupy.uint8)
        pinned = cupy.cuda.alloc_pinned_memory(length)
        stream = cupy.cuda.Stream(non_blocking=True)
        best = []
        for to, source, kind in ((pinned.ptr, on_device.data.ptr, 2), (on_device.data.ptr, pinned.ptr, 1)):
            times = []
            for _ in range(5):
                stream.synchronize()
                began = time.perf_counter()
                cupy.cuda.runtime.memcpyAsync(to, source, length, kind, stream.ptr)
                stream.synchronize()
                times.append(time.perf_counter() - began)
            best.append(length / min(times))
        return best


def driver():
    """Why no CUDA driver can be used here; None: cuInit works, and there is a device."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no GPU driver: {error}"
    if code := library.cuInit(0):
        return f"cuInit answered {code}"
    count = ctypes.c_int()
    if code := library.cuDeviceGetCount(ctypes.byref(count)):
        return f"cuDeviceGetCount answered {code}"
    return None if count.value else "no GPU is visible to this process"


def main():
    memory = {"fake": Fake, "cuda": Cuda}[sys.argv[1]]()
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "write":
            device, handle, length, seed = words
            answer = f"written {memory.write(int(device), handle, int(length), int(seed))}"
        elif verb in ("read", "hold"):
            device, handle, length = words
            found = getattr(memory, verb)(int(device), handle, int(length))
            answer = f"{verb} {found}"
        elif verb == "floor":
            device, length = words
            answer = "floor {} {}".format(*memory.floor(int(device), int(length)))
        else:
            raise ValueError(f"no task: {line!r}")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
