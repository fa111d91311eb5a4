"""arrival: what happens between accept and the first byte of HTTP: PROXY header, TLS handshake.

A client that arrives is given a protocol that stands in for the connection until it has got
through; then a ``Connection`` takes over. It has its own deadline, is no part of the requests
that a shutdown waits for, and a failure is told in one line: a portscan is no news, so what just
went silent or away is told at debug level only.
"""

from __future__ import annotations

import logging

from .connection import HTTPConnection
from .errors import ProtocolError
from .forwarded import Proxied, ProxyHeader
from .reactor import Deadline
from .tls import TLSTransport
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Callable, Optional

    from .certificates import Certificates
    from .forwarded import TrustedPeers
    from .service import Service

    Counted = Any  # a Connected or an Arrival
    Peer = Optional[tuple[str, int]]
    Local = Optional[tuple[str, Optional[int]]]


class Entrance:
    """Lead accepted sockets to their connections: at once, or through PROXY header and TLS.

    ``certificates`` is None without TLS; ``proxies`` are the peers that begin with a PROXY
    header, None when nobody does. ``pending`` are the clients on their way.
    """

    def __init__(
        self,
        service: Service,
        certificates: Certificates | None,
        proxies: TrustedPeers | None,
        timeout: float,
        write_timeout: float,
    ) -> None:
        self.service = service
        self.certificates = certificates
        self.proxies = proxies
        self.timeout = timeout
        self.write_timeout = write_timeout
        self.pending: set[Arrival] = set()
        self.number = 0
        self.limit = 0  # connections of one address; 0: no limit
        self.peers: dict[str, int] = {}  # how many each has, if there is a limit

    def limit_peers(self, limit: int) -> None:
        """From now on one address may hold ``limit`` connections; to be called before any."""
        self.limit = limit
        self.pending = CountedSet(self.peers)
        self.service.connections = CountedSet(self.peers)

    def admit(self, sock: socket.socket, peer: Peer, local: Local) -> None:
        """Begin with a socket that was just accepted."""
        self.number += 1
        if self.proxies is not None and peer_key(peer, local) in self.proxies:
            transport = Transport(
                self.service.reactor, sock, self.number, peer, local, self.write_timeout
            )
            transport.start(ProxyArrival(transport, self, self.begin))
        else:
            self.begin(sock, peer, local)

    def begin(self, sock: socket.socket, peer: Peer, local: Local, data: bytes = b"") -> None:
        """Begin the connection of ``peer``; ``data`` was received on it already."""
        service = self.service
        transport: Transport
        if self.limit and peer is not None and self.peers.get(peer[0], 0) >= self.limit:
            text = f"{peer[0]} holds {self.limit} connections: another one closed"
            service.complaints.log(logging.WARNING, text)
            sock.close()
            return
        if self.certificates is None:
            transport = Transport(
                service.reactor, sock, self.number, peer, local, self.write_timeout
            )
            transport.start(HTTPConnection(service, transport))
        else:
            transport = TLSTransport(
                self.certificates,
                service.reactor,
                sock,
                self.number,
                peer,
                local,
                self.write_timeout,
            )
            transport.start(TLSArrival(transport, self))
        if transport.trace:
            transport.trace("accept", transport, f"from {transport.peer_name}")
        if data:
            transport.received(data)

    def close(self) -> None:
        """Send away whoever is on the way."""
        for arrival in list(self.pending):
            arrival.reason = "the server shuts down"
            arrival.transport.close()


class CountedSet(set["Counted"]):
    """A set of what has a transport, that counts the members of each address in ``peers``."""

    def __init__(self, peers: dict[str, int]) -> None:
        super().__init__()
        self.peers = peers

    def add(self, member: Counted) -> None:
        """Add a member, and count it."""
        if member not in self:
            super().add(member)
            self.count(member, 1)

    def discard(self, member: Counted) -> None:
        """Remove a member, if it is one, and forget about an address without any."""
        if member in self:
            super().discard(member)
            self.count(member, -1)

    def count(self, member: Counted, change: int) -> None:
        """Keep the books."""
        peer = member.transport.peer
        if peer is not None:
            count = self.peers.get(peer[0], 0) + change
            if count:
                self.peers[peer[0]] = count
            else:
                del self.peers[peer[0]]


def peer_key(peer: Peer, local: Local) -> str:
    """Return what TrustedPeers knows a peer by."""
    return peer[0] if peer is not None else f"unix:{local[0] if local else ''}"


class Arrival:
    """The protocol of a client that has not got through yet."""

    def __init__(self, transport: Transport, entrance: Entrance) -> None:
        self.transport = transport
        self.entrance = entrance
        self.reason = ""  # why we gave up, when it was our decision
        self.deadline = Deadline(transport.reactor, self.on_deadline)
        self.deadline.set(transport.reactor.now + entrance.timeout)
        entrance.pending.add(self)

    def __repr__(self) -> str:
        return f"<Arrival {self.name()}>"

    def name(self) -> str:
        """Name the client for the log."""
        peer = self.transport.peer
        return "unix" if peer is None else f"{peer[0]}:{peer[1]}"

    def leave(self) -> None:
        """The client has got through, or is gone."""
        self.deadline.close()
        self.entrance.pending.discard(self)
        if self.entrance.service.on_change is not None:
            self.entrance.service.on_change()

    def on_deadline(self) -> None:
        """The client was silent, or much too slow."""
        self.reason = "no TLS handshake or PROXY header in time"
        self.transport.close()

    # -- what the transport calls --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Nothing is said to us while TLS shakes hands."""

    def eof_received(self) -> None:
        """The client left before it had begun."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client did not get through."""
        self.leave()
        refused = exc is not None and (
            isinstance(exc, ProtocolError) or not isinstance(exc, ConnectionError)
        )
        reason = exc or self.reason or "the client left before its first request"
        level = logging.WARNING if refused else logging.DEBUG
        self.entrance.service.complaints.log(level, f"{self.name()}: {describe_failure(reason)}")

    def pause_writing(self) -> None:
        """A handshake is small."""

    def resume_writing(self) -> None:
        """A handshake is small."""


class TLSArrival(Arrival):
    """Wait for the TLS handshake, which the transport does by itself."""

    def __init__(self, transport: TLSTransport, entrance: Entrance) -> None:
        super().__init__(transport, entrance)
        transport.on_secure = self.on_secure

    def on_secure(self) -> None:
        """The handshake is done: begin to read requests."""
        self.leave()
        self.transport.protocol = HTTPConnection(self.entrance.service, self.transport)


class ProxyArrival(Arrival):
    """Wait for the PROXY header; then ``go_on(sock, peer, local, data)`` with what it says."""

    def __init__(
        self,
        transport: Transport,
        entrance: Entrance,
        go_on: Callable[[socket.socket, Peer, Local, bytes], object],
    ) -> None:
        super().__init__(transport, entrance)
        self.go_on = go_on
        self.header = ProxyHeader()

    def data_received(self, data: bytes) -> None:
        """Read on in the header; with its end the socket goes to the real transport."""
        self.header.receive_data(data)
        try:
            event = self.header.next_event()
        except ProtocolError as exc:
            self.transport.lost(exc)
            return
        if isinstance(event, Proxied):
            self.leave()
            transport = self.transport
            peer = event.source or transport.peer
            local = event.destination or transport.local
            self.go_on(transport.detach(), peer, local, event.rest)


def describe_failure(reason: object) -> str:
    """Say what ``reason``, often an ssl.SSLError, means to an administrator."""
    text = getattr(reason, "verify_message", None) or getattr(reason, "reason", None)
    if text is None or isinstance(reason, ProtocolError):
        return str(reason)
    return f"TLS handshake failed: {text.lower().replace('_', ' ')}"
