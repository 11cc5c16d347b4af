"""The asyncio client."""

import asyncio
import time
import unittest

import numpy as np
import payload_manager as pm
from harness import Server


class Aio(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)

    async def asyncSetUp(self):
        self.client = await pm.aio.connect(self.server.address, timeout=20.0)
        self.remote = await pm.aio.connect(self.server.address, timeout=20.0, native=False)
        self.addAsyncCleanup(self.client.close)
        self.addAsyncCleanup(self.remote.close)

    async def held(self):
        stats = await self.remote.stats()
        return stats["node"]["leases"], stats["tiers"]["ram"]["uncommitted_bytes"]

    async def comes_back(self, before):
        for _ in range(500):
            if await self.held() == before:
                return
            await asyncio.sleep(0.01)
        self.assertEqual(await self.held(), before)

    async def test_given_each_way_when_written_and_read_then_the_same_bytes(self):
        for client in (self.client, self.remote):
            async with client.allocate(5, ttl=60.0) as writer:
                writer.view()[:] = b"hello"
                id = await writer.commit()
            async with client.acquire(id, min_tier="ram", timeout=5.0) as payload:
                self.assertEqual(bytes(payload), b"hello")
            self.assertTrue(payload.released)
            payload = await client.acquire(id)
            self.assertEqual(bytes(payload), b"hello")
            payload.release()
            array = await client.get_array(await client.put_array(np.arange(10)))
            self.assertEqual(int(array.sum()), 45)
            self.assertEqual((await client.spill(id, to="disk")).tier, "disk")
            self.assertEqual((await client.promote(id)).tier, "ram")
            await client.pin(id, 1.0)
            await client.unpin(id)
            await client.metadata.set(id, {"x": 1}, "s")
            self.assertEqual([event.kind async for event in client.metadata.history(id)], ["replaced"])
            self.assertIn(id, [info.id async for info in client.list()])
            self.assertEqual([info.id async for info in client.find(schema="s", fields={"x": 1})], [id])
            await client.delete(id)
            with self.assertRaises(pm.NotFound):
                await client.info(id)

    async def test_given_many_calls_at_once_when_gathered_then_all_are_answered_and_nothing_leaks(self):
        before = await self.held()
        for client in (self.client, self.remote):
            ids = await asyncio.gather(*(client.put(bytes([n]) * 100) for n in range(100)))
            payloads = await asyncio.gather(*(client.acquire(id) for id in ids))
            self.assertEqual([payload.view()[0] for payload in payloads], list(range(100)))
            del payloads
        await self.comes_back(before)

    async def test_given_a_call_that_waits_when_the_loop_goes_on_then_it_is_not_held_up_and_cancelling_leaks_nothing(self):
        before = await self.held()
        for client in (self.client, self.remote):
            id = await client.put(b"leased")
            async with client.acquire(id):
                waiting = asyncio.ensure_future(client.spill(id, wait_for_leases=True, timeout=1.0))
                start = time.monotonic()
                await asyncio.sleep(0.05)
                self.assertLess(time.monotonic() - start, 0.5)
                self.assertFalse(waiting.done())
                waiting.cancel()
            acquiring = asyncio.ensure_future(client.acquire(id).__aenter__())
            await asyncio.sleep(0)
            acquiring.cancel()
        await self.comes_back(before)

    async def test_given_an_exception_when_a_block_is_left_then_the_space_comes_back(self):
        before = await self.held()
        with self.assertRaises(ZeroDivisionError):
            async with self.client.allocate(4096) as writer:
                np.frombuffer(writer.buffer, dtype="u1")[:] = 1
                1 / 0
        await self.comes_back(before)

    async def test_given_a_stream_when_followed_then_entries_come_and_a_cancelled_wait_loses_none(self):
        streams = self.client.streams
        await streams.create("followed")
        ids = [await self.client.put(bytes([n])) for n in range(3)]
        async with await streams.subscribe("followed") as following:
            with self.assertRaises(TimeoutError):
                await asyncio.wait_for(following.next(), 0.1)
            await streams.append("followed", ids)
            seen = []
            async for entry in following:
                seen.append(entry.id)
                if len(seen) == 3:
                    break
            self.assertEqual(seen, ids)
        await streams.delete("followed")


if __name__ == "__main__":
    unittest.main()
