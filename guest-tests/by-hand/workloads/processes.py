# A pool of processes.
import multiprocessing


def work(number):
    return sum(i * i % 7 for i in range(number * 20))


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        print(sum(pool.map(work, range(200))))
