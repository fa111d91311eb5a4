"""Benchmarks: selectserve beside its peers, on this machine, in one run.

    python3 -m tests.bench                  everything (about an hour; the table goes to results.md)
    python3 -m tests.bench --quick --only hello,json --peers uvicorn,granian
    python3 -m tests.bench --list           the names of workloads and servers
    python3 -m tests.bench.instructions     instructions and system calls per request
    python3 -m tests.bench.opcodes          by function: where the bytecodes of a request go
    python3 -m tests.bench.growth           how the cost grows with connections and bodies

Linux only (/proc, CPU affinity), Python 3.10 or later, and `wrk` on PATH (`apt-get install wrk`).
The peers are installed into `.venv-bench` at the versions of requirements.txt. The server runs on
one core and the load on another; the servers take turns in every round, and what is compared are
ratios within a round. Nothing here decides whether a test passes.

Rooms: environment (venv, cores, machine) · apps* (what is served) · commands, servers (how it is
served; start, weigh, stop) · client, load, websocket_load (what asks) · workloads (the table) ·
footprint (start-up and memory) · measure, report.
"""
