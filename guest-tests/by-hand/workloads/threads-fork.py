# Threads that share a queue, then children by fork that write to a pipe.
import os
import queue
import threading

results = queue.Queue()


def work(number):
    total = 0
    for i in range(40000):
        total = (total * 31 + i * number) & 0xFFFFFFFF
    results.put(total)


for turn in range(4):
    threads = [threading.Thread(target=work, args=(turn * 4 + n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(sum(results.get() for _ in range(16)))

sums = 0
for child in range(20):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.write(write, b"%d" % sum(i * child for i in range(4000)))
        os._exit(0)
    os.close(write)
    sums += int(os.read(read, 100))
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
print(sums)
