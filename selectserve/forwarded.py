"""forwarded: who the client is when a proxy stands before us. Headers and bytes, no socket.

A proxy can testify in two ways: in header fields of each request (X-Forwarded-*, or RFC 7239
Forwarded; ``apply_forwarded`` changes the scope) or once before the first byte of a connection
(the PROXY protocol; ``ProxyHeader`` is a parser that says NEED_DATA and returns, like the others).
The connection asks TrustedPeers first, since anybody can write anything there.

Fields are read from the right: what stands there was appended by the peer that we trust, what
stands to the left of an untrusted address may be forged. Nothing in a header field fails a
request. A PROXY header that is not exactly right is a ProtocolError: it stands where the
administrator said that one must be, and a lenient reader would be a way around it.
"""

from __future__ import annotations

from .errors import ConfigError, ProtocolError
from .grammar import HOST
from .http1 import NEED_DATA, NeedData

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Callable, Optional, Union

    Endpoint = Optional[tuple[str, int]]
    Fields = tuple[tuple[bytes, bytes], ...]
    Hop = tuple[str, str, str, str]  # node, proto, host, port; each may be empty
    # what a hop is believed: client address, schemes as in FORWARDED_SCHEMES, Host, port or 0
    Testimony = tuple[Endpoint, Optional[tuple[str, str]], bytes, int]
    ProxyEvent = Union[NeedData, "Proxied"]

X_FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
FORWARDED_FIELDS = frozenset((*X_FORWARDED, b"forwarded"))
# What an app is given for a proto: the scheme of its HTTP scopes, and of its WebSocket scopes.
FORWARDED_SCHEMES = {
    "http": ("http", "ws"),
    "https": ("https", "wss"),
    "ws": ("http", "ws"),
    "wss": ("https", "wss"),
}
MAX_HOPS = 100  # nearest first; a longer way is nobody's
MAX_VERDICTS = 4096
MAX_TESTIMONIES = 1024
MAX_TESTIMONY = 512  # bytes; a longer one is read anew each time
MAPPED_IPV4 = b"\0" * 10 + b"\xff\xff"  # RFC 4291 §2.5.5.2: how a dual-stack socket shows IPv4

PROXY_V1 = b"PROXY "
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"
MAX_PROXY_LINE = 107  # "PROXY UNKNOWN" with two longest IPv6 addresses and ports, and CRLF
MAX_PROXY_BLOCK = 4096  # addresses and TLVs; a client certificate's names are the longest known
PROXY_ADDRESS_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}  # AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX


def pack_address(text: str) -> bytes | None:
    """Return the 4 or 16 bytes of an IP address, None for anything else; mapped IPv4 is IPv4."""
    # Not ipaddress: its import takes 2.4 ms, and inet_pton is as strict (no leading zeros).
    from socket import AF_INET, AF_INET6, inet_pton

    try:
        packed = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):  # ValueError: not encodable
        return None
    if "\0" in text:  # PyPy reads up to it, CPython raises
        return None
    return packed[12:] if packed.startswith(MAPPED_IPV4) else packed


class TrustedPeers:
    """The peers that may speak for others: ``peer in trusted``, from ``--forwarded-allow-ips``.

    ``spec`` lists, also as text with commas, addresses (``127.0.0.1``, ``::1``), networks
    (``10.0.0.0/8``), ``unix:`` for whoever comes over a unix socket, ``unix:/path`` (or the path
    alone) for one of them, and ``*`` for everybody. Empty trusts nobody. ConfigError names an
    entry that is none of these: one that could never match is a proxy not trusted in silence.
    """

    __slots__ = ("everybody", "networks", "sockets", "testimonies", "verdicts")

    def __init__(self, spec: str | Iterable[str]) -> None:
        self.everybody = False
        self.networks: list[tuple[int, int, int]] = []  # bytes of an address, bits dropped, rest
        self.sockets: set[str] = set()
        # Found out once: the peer of every request is looked up in the first, and what a proxy
        # says of a client in the second, which makes that cost 2 µs instead of 11.
        self.verdicts: dict[str | None, bool] = {}
        self.testimonies: dict[Fields, Testimony] = {}
        entries = spec.split(",") if isinstance(spec, str) else spec
        for entry in filter(None, map(str.strip, entries)):
            if entry == "*":
                self.everybody = True
            elif entry.startswith(("unix:", "/")):
                self.sockets.add(entry if entry[0] == "u" else "unix:" + entry)
            else:
                self.networks.append(parse_network(entry))

    def __contains__(self, host: str | None) -> bool:
        """Tell whether ``host`` is trusted: an address, ``unix:PATH``, or None for unix."""
        verdict = self.verdicts.get(host)
        if verdict is None:
            if len(self.verdicts) >= MAX_VERDICTS:
                self.verdicts.clear()
            verdict = self.verdicts[host] = self.judge(host)
        return verdict

    def judge(self, host: str | None) -> bool:
        """Find out what ``__contains__`` remembers."""
        if self.everybody:
            return True
        if host is None or host.startswith("unix:"):
            return "unix:" in self.sockets or host in self.sockets
        packed = pack_address(host.partition("%")[0])  # fe80::1%eth0 is fe80::1 here
        if packed is None:
            return False
        size, value = len(packed), int.from_bytes(packed, "big")
        return any(
            size == width and value >> dropped == rest for width, dropped, rest in self.networks
        )

    def hear(self, fields: Fields) -> Testimony:
        """Return what a trusted peer says with ``fields``, all that are in FORWARDED_FIELDS."""
        testimony = self.testimonies.get(fields)
        if testimony is None:
            testimony = read_testimony(fields, self)
            if sum(len(value) for _, value in fields) <= MAX_TESTIMONY:
                if len(self.testimonies) >= MAX_TESTIMONIES:
                    self.testimonies.clear()
                self.testimonies[fields] = testimony
        return testimony


def parse_network(entry: str) -> tuple[int, int, int]:
    """Read an address or a network: its bytes, how many bits to drop, what is left of it then."""
    address, slash, bits = entry.partition("/")
    packed = pack_address(address)
    if packed is None:
        raise ConfigError(
            f"--forwarded-allow-ips: {entry!r} is not an IP address, a network like 10.0.0.0/8, "
            f"unix:, unix:/path or *",
            2,
        )
    width = 8 * len(packed)
    prefix = width
    if slash:
        prefix = int(bits) if bits.isascii() and bits.isdigit() and len(bits) < 4 else -1
        if width == 32 and ":" in address:
            prefix -= 96
        if not 0 <= prefix <= width:
            raise ConfigError(
                f"--forwarded-allow-ips: {entry!r} needs a prefix length after the slash, as in "
                f"10.0.0.0/8",
                2,
            )
    dropped = width - prefix
    value = int.from_bytes(packed, "big")
    if value & ((1 << dropped) - 1):
        raise ConfigError(
            f"--forwarded-allow-ips: {entry!r} has bits set after its first {bits}: write the "
            f"network's own address, or leave out the slash to mean this one machine",
            2,
        )
    return len(packed), dropped, value >> dropped


# -- header fields -----------------------------------------------------------------------------


def strip_forwarded(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return ``headers`` without what an app could take for a proxy's word.

    That is Forwarded, X-Real-IP and all X-Forwarded-*, also spelled with ``_``, which a WSGI
    environ or a careless app does not tell from ``-``.
    """
    kept = []
    for pair in headers:
        name = pair[0].replace(b"_", b"-")
        if not name.startswith(b"x-forwarded-") and name not in (b"forwarded", b"x-real-ip"):
            kept.append(pair)
    return kept


class ForwardedRules:
    """What the options say about header fields of trusted and of other peers.

    ``on_ignored(peer)`` is called once, for the first peer whose word is not taken.
    """

    __slots__ = ("believe", "on_ignored", "strip", "trusted")

    def __init__(self, trusted: TrustedPeers, believe: bool, strip: bool) -> None:
        self.trusted = trusted
        self.believe = believe
        self.strip = strip
        self.on_ignored: Callable[[str], object] | None = None

    def apply(self, scope: dict[str, Any]) -> None:
        """Change ``scope`` by what a trusted peer says, and forget what another says."""
        if peer_name(scope) not in self.trusted:
            if self.on_ignored is not None and self.believe:
                tell, self.on_ignored = self.on_ignored, None
                tell(peer_name(scope))
            if self.strip:
                scope["headers"] = strip_forwarded(scope["headers"])
        elif self.believe:
            apply_forwarded(scope, self.trusted)


def peer_name(scope: dict[str, Any]) -> str:
    """Return what TrustedPeers knows the peer by: its address, or ``unix:PATH``."""
    client, server = scope.get("client"), scope.get("server")
    if client is not None:
        return str(client[0])
    # ASGI: a unix socket's server is (path, None)
    return f"unix:{server[0]}" if server is not None and server[1] is None else ""


def apply_forwarded(scope: dict[str, Any], trusted: TrustedPeers) -> None:
    """Replace in ``scope`` what a trusted peer's header fields say about the real client.

    ``client`` becomes the first address from the right that is not trusted, or the leftmost when
    all are; its port is the one given, else 0. Something that is no address (``unknown``, junk)
    ends the search at the hop before it. The same hop's proto becomes ``scheme``, its host the
    Host header, and X-Forwarded-Port the port of ``server`` and, if it has none and needs one,
    of the Host header. Where both kinds of fields are present X-Forwarded-* counts: nginx and
    others write those and pass a client's own Forwarded on as it is. The list of headers is
    replaced, never changed.
    """
    if peer_name(scope) not in trusted:
        return
    server = scope.get("server")
    fields = [pair for pair in scope["headers"] if pair[0] in FORWARDED_FIELDS]
    if not fields:
        return
    address, schemes, host, port = trusted.hear(tuple(fields))
    if address is not None:
        scope["client"] = address
    if schemes is not None:
        scope["scheme"] = schemes[scope["type"] == "websocket"]
    if port and server is not None and server[1] is not None:
        scope["server"] = (server[0], port)
    if host or port:
        scope["headers"] = replace_host(scope["headers"], host, port)


def read_testimony(fields: Fields, trusted: TrustedPeers) -> Testimony:
    """Find the hop whose word counts, and read it."""
    found: dict[bytes, list[str]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value.decode("latin-1"))
    lines = found.pop(b"forwarded", [])
    hops = x_forwarded_hops(found) if found else forwarded_hops(lines)
    if not hops:
        return None, None, b"", 0
    address, (_, proto, host, port) = nearest_untrusted(hops, trusted)
    schemes = FORWARDED_SCHEMES.get(proto.lower())
    return address, schemes, host.encode("latin-1"), port_number(port)


def x_forwarded_hops(found: dict[bytes, list[str]]) -> list[Hop]:
    """Make hops of X-Forwarded-*: several lines of a field are one list (RFC 9110 §5.3).

    A field with as many members as -For has belongs to the hops one by one, since each proxy
    appended to both. Of any other the last member counts, for all hops.
    """
    columns = [
        [member.strip() for line in found.get(name, ()) for member in line.split(",")]
        for name in X_FORWARDED
    ]
    columns = [[member for member in column if member][-MAX_HOPS:] for column in columns]
    size = len(columns[0]) or 1
    columns = [
        column if len(column) == size else (column[-1:] or [""]) * size for column in columns
    ]
    return list(zip(*columns))


def forwarded_hops(lines: list[str]) -> list[Hop]:
    """Make hops of Forwarded (RFC 7239 §4): its elements, which are pairs like ``for=1.2.3.4``."""
    elements = [text for line in lines for text in split_unquoted(line, ",") if text.strip()]
    hops: list[Hop] = []
    for element in elements[-MAX_HOPS:]:
        values = {}
        for pair in split_unquoted(element, ";"):
            name, _, value = pair.partition("=")
            values[name.strip().lower()] = value.strip().strip('"')
        node, proto, host = (values.get(name, "") for name in ("for", "proto", "host"))
        hops.append((node, proto, host, ""))
    return hops


def split_unquoted(text: str, separator: str) -> list[str]:
    r"""Split at separators that are not in a quoted-string, judged from the right.

    From the right, because a client that opens a quote and does not close it must not get to
    quote away what the proxy appended. An escaped quote (``\"``) does not count as one; no value
    that is used has one inside, so the escapes are not undone.
    """
    pieces = text.replace("\\\\", "\0").replace('\\"', "\1").split('"')
    parts: list[str] = []
    part: list[str] = []  # both from right to left
    for number, piece in enumerate(reversed(pieces)):
        if number % 2:
            part.append(f'"{piece}"')
            continue
        last, *others = reversed(piece.split(separator))
        part.append(last)
        for other in others:
            parts.append("".join(reversed(part)))
            part = [other]
    parts.append("".join(reversed(part)))
    parts.reverse()
    return parts


def nearest_untrusted(hops: list[Hop], trusted: TrustedPeers) -> tuple[Endpoint, Hop]:
    """Return the client's address, if one is known, and the hop whose word about it counts."""
    address: Endpoint = None
    hop = hops[-1]
    for hop in reversed(hops):
        node = parse_node(hop[0])
        if node is not None:
            address = node
            if node[0] not in trusted:
                break
        elif not trusted.judge(hop[0]):  # "unix:" may be; and with "*" everything is
            break
    return address, hop


def parse_node(text: str) -> Endpoint:
    """Read an address with or without a port, 0 for none: ``::1``, ``[::1]:55``, ``1.2.3.4:55``."""
    host, port = text, ""
    if text[:1] == "[":
        host, _, port = text[1:].partition("]")
        port = port[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    return None if pack_address(host) is None else (host, port_number(port))


def port_number(text: str) -> int:
    """Return a port, 0 for what is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    return number if number < 65536 else 0


def replace_host(
    headers: list[tuple[bytes, bytes]], host: bytes, port: int
) -> list[tuple[bytes, bytes]]:
    """Return ``headers`` with another Host; junk, or nothing to change, is ``headers`` again.

    An empty ``host`` keeps the one there is. A ``port`` of a scheme's own is never written: the
    two schemes are sometimes mixed up by those who forward, and nobody misses it.
    """
    host = host or next((value for name, value in headers if name == b"host"), b"")
    if not host or HOST.fullmatch(host) is None:
        return headers
    if port not in (0, 80, 443) and b":" not in host.rpartition(b"]")[2]:
        host = b"%b:%d" % (host, port)
    if not any(name == b"host" for name, _ in headers):
        return [*headers, (b"host", host)]
    return [(name, host if name == b"host" else value) for name, value in headers]


# -- the PROXY protocol ------------------------------------------------------------------------


class Proxied:
    """The PROXY header is read: the two ends of the client's connection, and the bytes after it.

    ``source`` and ``destination`` are (address, port), or None where the header says nothing
    usable (LOCAL, UNKNOWN, not TCP): the socket's own addresses count then.
    """

    __slots__ = ("destination", "rest", "source")

    def __init__(self, source: Endpoint, destination: Endpoint, rest: bytes) -> None:
        self.source = source
        self.destination = destination
        self.rest = rest

    def __repr__(self) -> str:
        return f"<Proxied {self.source} to {self.destination}>"


class ProxyHeader:
    """Read the header that a proxy sends first on a connection (PROXY protocol 1 and 2).

    Feed it with ``receive_data``; ``next_event`` is NEED_DATA until it is Proxied, once. A
    ProtocolError is final, and says the same for every split of the bytes:

        read_signature --> read_line | read_block
    """

    __slots__ = ("buffer", "next_event")

    def __init__(self) -> None:
        self.buffer = b""
        self.next_event: Callable[[], ProxyEvent] = self.read_signature

    def receive_data(self, data: bytes) -> None:
        """Take ``data`` as the next bytes of the connection; ask next_event then."""
        self.buffer += data

    def read_signature(self) -> ProxyEvent:
        """Tell the two versions apart; both begin as no HTTP request and no TLS handshake does."""
        buffer = self.buffer
        for signature, read in ((PROXY_V1, self.read_line), (PROXY_V2, self.read_block)):
            if buffer.startswith(signature):
                self.next_event = read
                return read()
            if signature.startswith(buffer):
                return NEED_DATA
        raise ProtocolError("no PROXY protocol header before the first request")

    def read_line(self) -> ProxyEvent:
        """Read version 1: ``PROXY TCP4 source destination port port`` and CRLF (§2.1)."""
        end = self.buffer.find(b"\n", 0, MAX_PROXY_LINE) + 1
        if not end:
            if len(self.buffer) >= MAX_PROXY_LINE:
                raise ProtocolError(f"PROXY line without an end in {MAX_PROXY_LINE} bytes")
            return NEED_DATA
        line, rest = self.buffer[:end], self.buffer[end:]
        fields = line[:-2].decode("latin-1").split(" ")
        if not line.endswith(b"\r\n"):
            raise ProtocolError(f"PROXY line does not end with CRLF: {line!r}")
        if fields[1] == "UNKNOWN":  # the rest of the line must be ignored
            return Proxied(None, None, rest)
        if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
            raise ProtocolError(f"invalid PROXY line {line!r}")
        source, destination, *ports = fields[2:]
        for text in (source, destination):
            if pack_address(text) is None or (":" in text) != (fields[1] == "TCP6"):
                raise ProtocolError(f"invalid address in PROXY line {line!r}")
        numbers = list(map(port_number, ports))
        if list(map(str, numbers)) != ports:  # no sign, no leading zero
            raise ProtocolError(f"invalid port in PROXY line {line!r}")
        return Proxied((source, numbers[0]), (destination, numbers[1]), rest)

    def read_block(self) -> ProxyEvent:
        """Read version 2: command, family, length, addresses, TLVs (§2.2); TLVs are skipped."""
        buffer = self.buffer
        if len(buffer) < 16:
            return NEED_DATA
        version, command = divmod(buffer[12], 16)
        family, protocol = divmod(buffer[13], 16)
        size = int.from_bytes(buffer[14:16], "big")
        if version != 2 or command > 1:
            raise ProtocolError(f"unknown version and command {buffer[12]:#04x} in PROXY header")
        if size > MAX_PROXY_BLOCK:
            raise ProtocolError(f"PROXY header of {size} bytes, more than {MAX_PROXY_BLOCK}")
        if command and (family > 3 or protocol > 2):
            raise ProtocolError(f"unknown address family {buffer[13]:#04x} in PROXY header")
        if command and size < PROXY_ADDRESS_SIZES[family]:
            raise ProtocolError("PROXY header too short for its addresses")
        if len(buffer) < 16 + size:
            return NEED_DATA
        block, rest = buffer[16 : 16 + size], buffer[16 + size :]
        if command == 0 or family == 0:  # LOCAL: the proxy itself, asking whether we are well
            return Proxied(None, None, rest)
        addresses = PROXY_ADDRESS_SIZES[family]
        skip_tlvs(block, addresses)
        if family == 3 or protocol != 1:  # valid, but not TCP: fall back to UNSPEC
            return Proxied(None, None, rest)
        return Proxied(*unpack_addresses(block[:addresses]), rest)


def skip_tlvs(block: bytes, position: int) -> None:
    """Check that type-length-value triples fill ``block`` from ``position`` on (§2.2)."""
    while position < len(block):
        size = int.from_bytes(block[position + 1 : position + 3], "big")
        if position + 3 + size > len(block):
            raise ProtocolError("a TLV goes beyond the end of the PROXY header")
        position += 3 + size


def unpack_addresses(block: bytes) -> tuple[Endpoint, Endpoint]:
    """Read two addresses, then two ports, in network order."""
    from socket import AF_INET, AF_INET6, inet_ntop

    width = (len(block) - 4) // 2
    family = AF_INET if width == 4 else AF_INET6
    source, destination = block[:width], block[width : 2 * width]
    return (
        (inet_ntop(family, source), int.from_bytes(block[-4:-2], "big")),
        (inet_ntop(family, destination), int.from_bytes(block[-2:], "big")),
    )
