# Tasks of an event loop that wait for each other.
import asyncio


async def produce(queue, number):
    for i in range(300):
        await queue.put(number * 1000 + i)
        if i % 50 == 0:
            await asyncio.sleep(0)


async def consume(queue, count):
    total = 0
    for _ in range(count):
        total += await queue.get()
    return total


async def main():
    queue = asyncio.Queue(maxsize=20)
    producers = [asyncio.create_task(produce(queue, number)) for number in range(20)]
    total = await consume(queue, 300 * 20)
    await asyncio.gather(*producers)
    print(total)


asyncio.run(main())
