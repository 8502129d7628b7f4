"""Python's multiprocessing at the work of `cargo bench`: prints one figure.

process METHOD N       microseconds to start a process, get a number back and join it
map WORKERS TASKS      nanoseconds a task of Pool.map with its default chunks
imap_unordered WORKERS TASKS
                       nanoseconds a task of Pool.imap_unordered, one task a chunk
apply CALLS            microseconds of one Pool.apply to an idle pool
queue KIND EACH ITEMS LEN
                       nanoseconds an item, from EACH processes to as many
queue_round_trip N     microseconds of 64 bytes there and back by two queues
pss METHOD WORKERS     KiB of memory that an idle worker has for itself
alone WHAT N           nanoseconds to take and give back, ask, or add, with nobody else there
hand_over WHAT CORES N microseconds there and back between two processes
barrier PARTIES CORES N
                       microseconds for so many processes to meet
"""

import multiprocessing as mp
import os
import statistics
import sys
import time


def work(x):
    return x + 1


def answer(connection, x):
    connection.send(x + 1)


def process(method, n):
    context = mp.get_context(method)
    samples = []
    for _ in range(int(n) + 2):
        begun = time.perf_counter()
        ours, childs = context.Pipe()
        child = context.Process(target=answer, args=(childs, 41))
        child.start()
        assert ours.recv() == 42
        child.join()
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples[2:]) * 1e6


def up(pool, workers):
    pool.map(work, range(workers * 4), chunksize=1)


def per_task(workers, tasks, take):
    with mp.Pool(int(workers)) as pool:
        up(pool, int(workers))
        begun = time.perf_counter()
        total = take(pool, range(int(tasks)))
        elapsed = time.perf_counter() - begun
    assert total == sum(range(1, int(tasks) + 1))
    return elapsed / int(tasks) * 1e9


def map(workers, tasks):
    return per_task(workers, tasks, lambda pool, items: sum(pool.map(work, items)))


def imap_unordered(workers, tasks):
    return per_task(workers, tasks, lambda pool, items: sum(pool.imap_unordered(work, items)))


def apply(calls):
    with mp.Pool(2) as pool:
        up(pool, 2)
        samples = []
        for _ in range(int(calls)):
            begun = time.perf_counter()
            assert pool.apply(work, (7,)) == 8
            samples.append(time.perf_counter() - begun)
    return statistics.median(samples) * 1e6


def produce(queue, items, length):
    body = b"7" * length
    for i in range(items):
        queue.put((i, body))


def consume(queue, counts):
    count = 0
    while queue.get() is not None:
        count += 1
    counts.put(count)


def queue(kind, each, items, length):
    each, items = int(each), int(items)
    context = mp.get_context("forkserver")
    channel = context.SimpleQueue() if kind == "SimpleQueue" else context.Queue(1024)
    counts = context.SimpleQueue()
    consumers = [context.Process(target=consume, args=(channel, counts)) for _ in range(each)]
    for consumer in consumers:
        consumer.start()
    begun = time.perf_counter()
    argument = (channel, items // each, int(length))
    producers = [context.Process(target=produce, args=argument) for _ in range(each)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    for _ in consumers:
        channel.put(None)
    total = sum(counts.get() for _ in consumers)
    elapsed = time.perf_counter() - begun
    assert total == items // each * each
    for consumer in consumers:
        consumer.join()
    return elapsed / items * 1e9


def echo(there, back):
    while (item := there.get()) is not None:
        back.put(item)


def queue_round_trip(n):
    there, back = mp.Queue(1), mp.Queue(1)
    child = mp.Process(target=echo, args=(there, back))
    child.start()
    samples = []
    for _ in range(int(n)):
        begun = time.perf_counter()
        there.put(b"7" * 64)
        assert len(back.get()) == 64
        samples.append(time.perf_counter() - begun)
    there.put(None)
    child.join()
    return statistics.median(samples) * 1e6


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def pss(method, workers):
    context = mp.get_context(method)
    with context.Pool(int(workers)) as pool:
        up(pool, int(workers))
        pids = [child.pid for child in mp.active_children()]
        assert len(pids) == int(workers) and os.getpid() not in pids
        return statistics.mean([pss_kib(pid) for pid in pids])


def alone(what, n):
    lock, event, value = mp.Lock(), mp.Event(), mp.Value("Q", 0)
    semaphore = mp.Semaphore(1)

    def take_and_give(lock):
        for _ in range(n):
            lock.acquire()
            lock.release()

    def ask():
        is_set = event.is_set
        for _ in range(n):
            is_set()

    def add():
        for _ in range(n):
            with value.get_lock():
                value.value += 1

    n = int(n)
    work = {
        "Lock": lambda: take_and_give(lock),
        "Semaphore": lambda: take_and_give(semaphore),
        "Event.is_set": ask,
        "Value": add,
    }[what]
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / n * 1e9


def together(target, arguments, n):
    """Seconds that so many processes need, this one among them; they begin at a barrier."""
    context = mp.get_context("fork")
    start = context.Barrier(n)
    children = [
        context.Process(target=target, args=(*arguments, start, role)) for role in range(1, n)
    ]
    for child in children:
        child.start()
    begun = []
    target(*arguments, start, 0, begun)
    elapsed = time.perf_counter() - begun[0]
    for child in children:
        child.join()
    return elapsed


def confine(cores):
    if int(cores) == 1:
        os.sched_setaffinity(0, {0})


def play_events(there, back, n, start, role, begun=None):
    mine, other = (back, there) if role == 0 else (there, back)
    start.wait()
    begun is not None and begun.append(time.perf_counter())
    for _ in range(n):
        if role == 0:
            other.set()
        mine.wait()
        mine.clear()
        if role == 1:
            other.set()


def play_semaphores(there, back, n, start, role, begun=None):
    mine, other = (back, there) if role == 0 else (there, back)
    start.wait()
    begun is not None and begun.append(time.perf_counter())
    for _ in range(n):
        if role == 0:
            other.release()
        mine.acquire()
        if role == 1:
            other.release()


def play_condition(condition, turn, n, start, role, begun=None):
    start.wait()
    begun is not None and begun.append(time.perf_counter())
    for _ in range(n):
        with condition:
            while turn.value % 2 != role:
                condition.wait()
            turn.value += 1
            condition.notify()


def hand_over(what, cores, n):
    confine(cores)
    n = int(n)
    if what == "Event":
        elapsed = together(play_events, (mp.Event(), mp.Event(), n), 2)
    elif what == "Semaphore":
        elapsed = together(play_semaphores, (mp.Semaphore(0), mp.Semaphore(0), n), 2)
    else:
        turn = mp.Value("Q", 0, lock=False)
        elapsed = together(play_condition, (mp.Condition(mp.Lock()), turn, n), 2)
    return elapsed / n * 1e6


def meet(barrier, n, start, role, begun=None):
    start.wait()
    begun is not None and begun.append(time.perf_counter())
    for _ in range(n):
        barrier.wait()


def barrier(parties, cores, n):
    confine(cores)
    elapsed = together(meet, (mp.Barrier(int(parties)), int(n)), int(parties))
    return elapsed / int(n) * 1e6


if __name__ == "__main__":
    print(globals()[sys.argv[1]](*sys.argv[2:]))
