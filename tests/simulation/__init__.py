"""The whole server against scripted and random clients, without a socket and without time.

Reactor, selector, clock and sockets are arguments of the server, so a test can bring a world of its
own: `world` is the kernel and the network, `clients` say what they say, `apps` answer, `checks`
holds the invariants after every turn. Everything is drawn from one seed: a failing seed replays
exactly, narrated, with ``python3 -m tests.simulation --seed N``.
"""
