"""Python's Pipe and queues at the work of the peers: prints one figure.

round_trip one_core|anywhere             microseconds there and back, 64 bytes
one_way LEN N ns|us                      time a message
queue_round_trip KIND one_core|anywhere  the same by a Queue or SimpleQueue
queue KIND LEN N ns|us
"""

import multiprocessing as mp
import os
import statistics
import sys
import time


def echo(connection):
    while True:
        connection.send_bytes(connection.recv_bytes())


def send(connection, length, n):
    message = bytes(length)
    for _ in range(n + 1):
        connection.send_bytes(message)


def child(target, *arguments):
    process = mp.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()


def round_trip(place):
    if place == "one_core":
        os.sched_setaffinity(0, {0})
    ours, theirs = mp.Pipe()
    child(echo, theirs)
    message = bytes(64)
    samples = []
    for _ in range(10_000):
        begun = time.perf_counter()
        ours.send_bytes(message)
        ours.recv_bytes()
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples) * 1e6


def one_way(length, n, unit):
    receiver, sender = mp.Pipe(duplex=False)
    child(send, sender, int(length), int(n))
    receiver.recv_bytes()
    begun = time.perf_counter()
    for _ in range(int(n)):
        receiver.recv_bytes()
    return (time.perf_counter() - begun) / int(n) * {"ns": 1e9, "us": 1e6}[unit]


def pass_on(there, back):
    while True:
        back.put(there.get())


def put(queue, length, n):
    message = bytes(length)
    for _ in range(n + 1):
        queue.put(message)
    # A Queue's own thread still sends.
    time.sleep(60)


def queue_round_trip(kind, place):
    if place == "one_core":
        os.sched_setaffinity(0, {0})
    there, back = getattr(mp, kind)(), getattr(mp, kind)()
    child(pass_on, there, back)
    message = bytes(64)
    samples = []
    for _ in range(5_000):
        begun = time.perf_counter()
        there.put(message)
        back.get()
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples) * 1e6


def queue(kind, length, n, unit):
    length, n = int(length), int(n)
    bounds = {"Queue": [64 if length < 1 << 20 else 8], "SimpleQueue": []}
    channel = getattr(mp, kind)(*bounds[kind])
    child(put, channel, length, n)
    channel.get()
    begun = time.perf_counter()
    for _ in range(n):
        channel.get()
    return (time.perf_counter() - begun) / n * {"ns": 1e9, "us": 1e6}[unit]


if __name__ == "__main__":
    print(globals()[sys.argv[1]](*sys.argv[2:]))
