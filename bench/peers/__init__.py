"""The same durable round trip on systems people use today, to compare durable dispatch with.

The work is one for all: a client process submits a no-op with a small argument, a worker process executes it, and a
small value returns to the client; every submission is flushed to disk before it is acknowledged. All processes are
on this machine and speak over loopback. For each peer: the latency of one caller (p50, p99), runs per second with
256 in flight, flushes per run, and the CPU that each process spends on a run. Load is bounded in count and time.

Nothing here is needed to run Fairlead. What a peer needs is looked for, and a peer that lacks something is
skipped with one line that says how to install it:

    pip install -e '.[bench-peers]'              # nats-py, Celery, Dramatiq, Procrastinate
    apt-get install redis-server postgresql      # servers; this benchmark starts its own, on free ports
    apt-get install nats-server                  # 2.10 or newer (Debian 13); else NATS_SERVER=/path/to/it
    apt-get install strace                       # to count flushes

Servers run in a folder of their own under the temporary directory, as an unprivileged user when root starts them,
and are stopped by process id. A module for each peer holds all that is particular to it: what it needs, how its
server is configured, its worker, its client. `measuring` runs them; `load` is what a client process does.

What is not equal, and must be said beside the figures: JetStream answers over core NATS in its first variant, so that
result is not durable; Procrastinate keeps no results, so its task stores one itself; Celery and Dramatiq have blocking
clients, so their 256 in flight are threads that submit a share each and then collect it; none of the peers encrypts,
checks arguments or keeps an audit here, and our own figures include all three.
"""
