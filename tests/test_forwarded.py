"""forwarded: whom to believe, what header fields say, and both versions of the PROXY protocol."""

from __future__ import annotations

import ast
import itertools
import random
import re
import shutil
import socket
import subprocess
import sys

import pytest

from selectserve.errors import ConfigError, ProtocolError
from selectserve.forwarded import (
    FORWARDED_FIELDS,
    MAX_HOPS,
    MAX_PROXY_BLOCK,
    MAX_TESTIMONIES,
    MAX_TESTIMONY,
    MAX_VERDICTS,
    PROXY_V2,
    ForwardedRules,
    Proxied,
    ProxyHeader,
    TrustedPeers,
    apply_forwarded,
    strip_forwarded,
)
from selectserve.http1 import NEED_DATA

from .support import DEADLINE, RawClient, assert_linear, run_server, splits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Callable

    from .support import Response, Server

    Serve = Callable[..., Server]

DEFAULT = "127.0.0.1,::1"


# -- whom to believe ---------------------------------------------------------------------------

TRUST = [
    # spec, trusted, not trusted
    (DEFAULT, ["127.0.0.1", "::1", "0:0::1", "::ffff:127.0.0.1"], ["127.0.0.2", "::2", None, ""]),
    ("", [], ["127.0.0.1", "::1", None, "", "unix:", "*"]),
    (" , ,", [], ["127.0.0.1", None]),
    ("*", ["127.0.0.1", "2001:db8::1", None, "", "junk", "unix:", "unix:/run/x"], []),
    ("10.0.0.1, *", ["127.0.0.1", None], []),
    ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], ["11.0.0.0", "::10.1.2.3"]),
    ("10.0.0.0/9", ["10.127.255.255"], ["10.128.0.0"]),
    ("10.0.0.7/32", ["10.0.0.7"], ["10.0.0.6", "10.0.0.8"]),
    ("0.0.0.0/0", ["1.2.3.4", "255.255.255.255"], ["::1", None]),
    ("::/0", ["::1", "2001:db8::1"], ["1.2.3.4", None]),
    ("2001:db8::/33", ["2001:db8:7fff::1", "2001:DB8::"], ["2001:db8:8000::", "2001:db9::"]),
    ("fe80::/10", ["fe80::1%eth0", "fe80::1"], ["fec0::1", "1.2.3.4"]),
    ("fe80::1", ["fe80::1%eth0"], ["fe80::2%eth0"]),
    ("::ffff:10.0.0.0/104", ["10.9.9.9"], ["11.0.0.0"]),
    ("::ffff:0:0/96", ["10.9.9.9", "::ffff:1.2.3.4"], ["::1"]),
    ("unix:", [None, "unix:", "unix:/run/any"], ["127.0.0.1", "", "/run/any"]),
    ("unix:/run/x", ["unix:/run/x"], [None, "unix:", "unix:/run/y", "/run/x"]),
    ("/run/x", ["unix:/run/x"], [None, "unix:/run/y"]),
    ("127.0.0.1,unix:", ["127.0.0.1", None], ["::1"]),
    (["127.0.0.1", "unix:"], ["127.0.0.1", None], ["::1"]),  # as uvicorn's callers may say it
    # nothing that is merely like an address
    (
        "127.0.0.1",
        [],
        ["127.0.0.01", "127.1", "127.0.0.1 ", "127.0.0.1\0", "127.0.0.1:80", "\u0661"],
    ),
]


@pytest.mark.parametrize(("spec", "inside", "outside"), TRUST)
def test_trusted(
    spec: str | list[str], inside: list[str | None], outside: list[str | None]
) -> None:
    trusted = TrustedPeers(spec)
    for _ in range(2):  # found out, then remembered
        assert [host for host in inside if host not in trusted] == []
        assert [host for host in outside if host in trusted] == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("localhost", "'localhost' is not an IP address"),
        ("127.0.0.1,proxy.internal", "'proxy.internal'"),
        ("127.0.0.256", "'127.0.0.256'"),
        ("127.0.0.1:80", "'127.0.0.1:80'"),
        ("[::1]", "'[::1]'"),
        ("10.0.0.0/33", "prefix length"),
        ("10.0.0.0/", "prefix length"),
        ("10.0.0.0/-1", "prefix length"),
        ("10.0.0.0/8/8", "prefix length"),
        ("10.0.0.0/\u0668", "prefix length"),
        ("10.0.0.0/" + "0" * 5000 + "8", "prefix length"),
        ("::ffff:10.0.0.0/8", "prefix length"),
        ("10.0.0.1/8", "has bits set after its first 8"),
        ("2001:db8::1/32", "has bits set after its first 32"),
        ("**", "'**'"),
        ("10.0.0.*", "'10.0.0.*'"),
    ],
)
def test_an_entry_that_could_never_match_is_an_error(spec: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrustedPeers(spec)
    assert says in str(raised.value)
    assert "--forwarded-allow-ips" in str(raised.value)
    assert raised.value.exit_code == 2


def test_the_memory_of_verdicts_is_bounded() -> None:
    trusted = TrustedPeers("10.0.0.0/8")
    for number in range(3 * MAX_VERDICTS):
        assert f"10.0.{number >> 8}.{number & 255}" in trusted
    assert len(trusted.verdicts) <= MAX_VERDICTS


def test_the_memory_of_what_was_said_is_bounded() -> None:
    trusted = TrustedPeers("127.0.0.1")
    for number in range(3 * MAX_TESTIMONIES):
        apply_forwarded(make_scope(f"X-Forwarded-For: junk{number}"), trusted)
    assert 0 < len(trusted.testimonies) <= MAX_TESTIMONIES
    assert set(trusted.verdicts) == {"127.0.0.1"}, "a client could fill it with long strings"
    trusted.testimonies.clear()
    apply_forwarded(make_scope("X-Forwarded-For: " + "x" * (MAX_TESTIMONY + 1)), trusted)
    assert not trusted.testimonies


# -- header fields -----------------------------------------------------------------------------


def make_scope(*lines: str, kind: str = "http", **changes: Any) -> dict[str, Any]:
    headers = [(b"host", b"app.test"), (b"accept", b"*/*")]
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower().encode(), value.strip(" \t").encode("latin-1")))
    scope = {
        "type": kind,
        "scheme": "http" if kind == "http" else "ws",
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "headers": headers,
    }
    scope.update(changes)
    return scope


def applied(spec: str, *lines: str, **changes: Any) -> dict[str, Any]:
    trusted, scopes = TrustedPeers(spec), []
    for _ in range(2):  # found out, then remembered
        scope = make_scope(*lines, **changes)
        given, before = scope["headers"], list(scope["headers"])
        apply_forwarded(scope, trusted)
        assert given == before, "the request's own list of headers was changed"
        scopes.append(scope)
    assert scopes[0] == scopes[1]
    return scopes[0]


CLIENTS = [
    # trusted, header lines, client afterwards; "as it was" is None
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 6.6.6.6, 1.2.3.4"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4, 127.0.0.1"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 6.6.6.6,1.2.3.4,\t127.0.0.1 , ::1"], ("1.2.3.4", 0)),
    ("127.0.0.1,10.0.0.0/8", ["X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.1.1.1"], ("1.2.3.4", 0)),
    ("127.0.0.1,10.0.0.0/8", ["X-Forwarded-For: 10.2.2.2, 10.1.1.1"], ("10.2.2.2", 0)),  # all are
    ("*", ["X-Forwarded-For: 1.2.3.4, 5.6.7.8, ::1"], ("1.2.3.4", 0)),
    ("*", ["X-Forwarded-For: 1.2.3.4, \xf0\xfd\xfd\xfd, unix:, ::1"], ("1.2.3.4", 0)),
    ("*", ["X-Forwarded-For: unknown, 1.2.3.4"], ("1.2.3.4", 0)),
    # several lines are one list
    (DEFAULT, ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.2.3.4, ::1"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 127.0.0.1"], ("1.2.3.4", 0)),
    # ports
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:55"], ("1.2.3.4", 55)),
    (DEFAULT, ["X-Forwarded-For: [2001:db8::1]:55"], ("2001:db8::1", 55)),
    (DEFAULT, ["X-Forwarded-For: [2001:db8::1]"], ("2001:db8::1", 0)),
    (DEFAULT, ["X-Forwarded-For: 2001:db8::1"], ("2001:db8::1", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:99, 127.0.0.1:3, [::1]:55"], ("1.2.3.4", 99)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:65536"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:_p"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4:" + "9" * 5000], ("1.2.3.4", 0)),
    # a hop that is no address ends the search, at the last address known
    (DEFAULT, ["X-Forwarded-For: unknown"], None),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4, unknown, 127.0.0.1"], ("127.0.0.1", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4, unix:"], None),
    (DEFAULT + ",unix:", ["X-Forwarded-For: 6.6.6.6, 1.2.3.4, unix:"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For:"], None),
    (DEFAULT, ["X-Forwarded-For: , ,,"], None),
    (DEFAULT, ["X-Forwarded-For: ,1.2.3.4,,"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3"], None),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.04"], None),
    (DEFAULT, ["X-Forwarded-For: [::1"], ("::1", 0)),
    (DEFAULT, ["X-Forwarded-For: fe80::1%<b>"], None),
    (DEFAULT, ["X-Forwarded-For: \xb2.1.1.1"], None),
    (DEFAULT, ["X-Forwarded-For: _hidden, \x1b[31m"], None),
    # the peer is not trusted
    ("10.0.0.1", ["X-Forwarded-For: 1.2.3.4"], None),
    ("", ["X-Forwarded-For: 1.2.3.4"], None),
    ("", ["Forwarded: for=1.2.3.4"], None),
    # RFC 7239
    (DEFAULT, ["Forwarded: for=1.2.3.4"], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: For="[2001:db8:cafe::17]:4711"'], ("2001:db8:cafe::17", 4711)),
    (DEFAULT, ['Forwarded: for="[2001:db8::1]"'], ("2001:db8::1", 0)),
    (DEFAULT, ["Forwarded: for=192.0.2.60;proto=http;by=203.0.113.43"], ("192.0.2.60", 0)),
    (DEFAULT, ["Forwarded: for=6.6.6.6, for=1.2.3.4, for=127.0.0.1"], ("1.2.3.4", 0)),
    (DEFAULT, ["Forwarded: for=6.6.6.6", 'Forwarded: for=1.2.3.4 , for="[::1]:7"'], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: for="1.2.3.4:55"'], ("1.2.3.4", 55)),
    (DEFAULT, ['Forwarded: for="1.2.3.4:_port"'], ("1.2.3.4", 0)),
    (DEFAULT, ["Forwarded: for=unknown"], None),
    (DEFAULT, ["Forwarded: for=_gazonk"], None),
    (DEFAULT, ["Forwarded: for=1.2.3.4, for=_secret, for=127.0.0.1"], ("127.0.0.1", 0)),
    (DEFAULT, ["Forwarded: proto=https"], None),
    (DEFAULT, ["Forwarded: ;;; for=1.2.3.4 ;;"], ("1.2.3.4", 0)),
    (DEFAULT, ["Forwarded: , for=1.2.3.4,,"], ("1.2.3.4", 0)),
    (DEFAULT, ["Forwarded: for"], None),
    (DEFAULT, ["Forwarded:"], None),
    (DEFAULT, ['Forwarded: =,;="\\'], None),
    # a client's open quote does not swallow what the proxy appended
    (DEFAULT, ['Forwarded: for=6.6.6.6;x=", for=1.2.3.4'], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: for=6.6.6.6;x="\\, for=1.2.3.4'], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: for=6.6.6.6;x=", for="[2001:db8::1]"'], ("2001:db8::1", 0)),
    (DEFAULT, ['Forwarded: for=6.6.6.6;x="', "Forwarded: for=1.2.3.4"], ("1.2.3.4", 0)),
    # nor can it write an element from within a quoted string
    (DEFAULT, ['Forwarded: for=1.2.3.4;x="a, for=6.6.6.6"'], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: for=1.2.3.4;host="a\\",for=6.6.6.6;x=\\""'], ("1.2.3.4", 0)),
    (DEFAULT, ['Forwarded: for=1.2.3.4;x="a\\\\"'], ("1.2.3.4", 0)),
    # both: X-Forwarded counts, in whatever order they come
    (DEFAULT, ["Forwarded: for=6.6.6.6", "X-Forwarded-For: 1.2.3.4"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-For: 1.2.3.4", "Forwarded: for=6.6.6.6"], ("1.2.3.4", 0)),
    (DEFAULT, ["X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6"], None),
]


@pytest.mark.parametrize(("spec", "lines", "client"), CLIENTS)
def test_client(spec: str, lines: list[str], client: tuple[str, int] | None) -> None:
    scope = applied(spec, *lines)
    assert scope["client"] == (client or ("127.0.0.1", 50000))
    assert type(scope["client"][1]) is int
    assert scope["scheme"] in ("http", "https")


SCHEMES = [
    # header lines, scheme of an HTTP scope, scheme of a WebSocket scope
    ([], "http", "ws"),
    (["X-Forwarded-Proto: https"], "https", "wss"),
    (["X-Forwarded-Proto: HTTPS "], "https", "wss"),
    (["X-Forwarded-Proto: wss"], "https", "wss"),
    (["X-Forwarded-Proto: http"], "http", "ws"),
    (["X-Forwarded-Proto: ws"], "http", "ws"),
    (["X-Forwarded-Proto: ftp"], "http", "ws"),
    (["X-Forwarded-Proto: javascript"], "http", "ws"),
    (["X-Forwarded-Proto:"], "http", "ws"),
    (["X-Forwarded-Proto: https", "X-Forwarded-For: 1.2.3.4"], "https", "wss"),
    (["X-Forwarded-Proto: https", "X-Forwarded-For: junk"], "https", "wss"),
    # as many as there are hops: each belongs to its own
    (["X-Forwarded-Proto: https, http", "X-Forwarded-For: 1.2.3.4, ::1"], "https", "wss"),
    (["X-Forwarded-Proto: https, http", "X-Forwarded-For: 6.6.6.6, 1.2.3.4"], "http", "ws"),
    (["X-Forwarded-Proto: https", "X-Forwarded-For: 1.2.3.4, ::1"], "https", "wss"),
    # any other number: the nearest proxy's
    (["X-Forwarded-Proto: http, https", "X-Forwarded-For: 1.2.3.4"], "https", "wss"),
    (["X-Forwarded-Proto: http", "X-Forwarded-Proto: https"], "https", "wss"),
    (["Forwarded: proto=https"], "https", "wss"),
    (["Forwarded: for=1.2.3.4;PROTO=Https"], "https", "wss"),
    (["Forwarded: for=1.2.3.4;proto=https, for=127.0.0.1;proto=http"], "https", "wss"),
    (["Forwarded: for=6.6.6.6;proto=https, for=1.2.3.4"], "http", "ws"),
]


@pytest.mark.parametrize(("lines", "http", "websocket"), SCHEMES)
def test_scheme(lines: list[str], http: str, websocket: str) -> None:
    assert applied(DEFAULT, *lines)["scheme"] == http
    assert applied(DEFAULT, *lines, kind="websocket")["scheme"] == websocket
    assert applied("10.0.0.1", *lines)["scheme"] == "http"


HOSTS = [
    # header lines, Host afterwards, port of the server afterwards
    (["X-Forwarded-Host: shop.test"], b"shop.test", 8000),
    (["X-Forwarded-Host: shop.test:8443"], b"shop.test:8443", 8000),
    (["X-Forwarded-Host: [::1]:8443"], b"[::1]:8443", 8000),
    (["X-Forwarded-Host: a.test, b.test"], b"b.test", 8000),
    (["X-Forwarded-Host: a.test, b.test", "X-Forwarded-For: 1.2.3.4, ::1"], b"a.test", 8000),
    (["X-Forwarded-Host: bad.test, b.test", "X-Forwarded-For: 6.6.6.6, 1.2.3.4"], b"b.test", 8000),
    (["X-Forwarded-Host: a b"], b"app.test", 8000),
    (["X-Forwarded-Host: a/b"], b"app.test", 8000),
    (["X-Forwarded-Host: a@b"], b"app.test", 8000),
    (["X-Forwarded-Host: \xe9"], b"app.test", 8000),
    (["X-Forwarded-Host:"], b"app.test", 8000),
    (["X-Forwarded-Port: 8443"], b"app.test:8443", 8443),
    (["X-Forwarded-Port: 443"], b"app.test", 443),
    (["X-Forwarded-Port: 80"], b"app.test", 80),
    (["X-Forwarded-Port: 0"], b"app.test", 8000),
    (["X-Forwarded-Port: 70000"], b"app.test", 8000),
    (["X-Forwarded-Port: \xb2"], b"app.test", 8000),
    (["X-Forwarded-Port: -1"], b"app.test", 8000),
    (["X-Forwarded-Port: 8443", "X-Forwarded-Host: shop.test"], b"shop.test:8443", 8443),
    (["X-Forwarded-Port: 8443", "X-Forwarded-Host: [::1]"], b"[::1]:8443", 8443),
    (["X-Forwarded-Port: 8443", "X-Forwarded-Host: shop.test:99"], b"shop.test:99", 8443),
    (["X-Forwarded-Port: 443", "X-Forwarded-Host: shop.test"], b"shop.test", 443),
    (["Forwarded: for=1.2.3.4;host=shop.test"], b"shop.test", 8000),
    (['Forwarded: for=1.2.3.4;host="shop.test:8443"'], b"shop.test:8443", 8000),
    (['Forwarded: host="a\\"b"'], b"app.test", 8000),
    (["Forwarded: host=bad.test, for=1.2.3.4;host=b.test"], b"b.test", 8000),
    (["Forwarded: host=bad.test, for=1.2.3.4"], b"app.test", 8000),
    (["Forwarded: host=b.test", "X-Forwarded-For: 1.2.3.4"], b"app.test", 8000),
]


@pytest.mark.parametrize(("lines", "host", "port"), HOSTS)
def test_host(lines: list[str], host: bytes, port: int) -> None:
    scope = applied(DEFAULT, *lines)
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]
    assert scope["server"] == ("127.0.0.1", port)
    assert [name for name, _ in scope["headers"]][:2] == [b"host", b"accept"]
    untouched = make_scope(*lines)
    assert applied("10.0.0.1", *lines) == untouched


def test_a_request_without_host_gets_one() -> None:
    scope = applied(DEFAULT, headers=[(b"x-forwarded-host", b"shop.test")])
    assert scope["headers"] == [(b"x-forwarded-host", b"shop.test"), (b"host", b"shop.test")]
    scope = applied(DEFAULT, headers=[(b"x-forwarded-port", b"8443")])
    assert scope["headers"] == [(b"x-forwarded-port", b"8443")]


@pytest.mark.parametrize(
    ("spec", "server", "believed"),
    [
        (DEFAULT, ["/run/x", None], False),
        ("unix:", ["/run/x", None], True),
        ("unix:/run/x", ["/run/x", None], True),
        ("unix:/run/y", ["/run/x", None], False),
        ("*", ["/run/x", None], True),
        # no client, and yet no unix socket: the peer is unknown
        ("unix:", ("127.0.0.1", 8000), False),
        ("unix:", None, False),
        ("*", None, True),
    ],
)
def test_peer_on_a_unix_socket(spec: str, server: Any, believed: bool) -> None:
    lines = ["X-Forwarded-For: 1.2.3.4:5", "X-Forwarded-Proto: https", "X-Forwarded-Port: 443"]
    scope = applied(spec, *lines, client=None, server=server)
    assert scope["client"] == (("1.2.3.4", 5) if believed else None)
    assert scope["scheme"] == ("https" if believed else "http")
    assert scope["server"] == server, "a path has no port"


def test_more_hops_than_anybody_has() -> None:
    far = ", ".join(["9.9.9.9"] * 5000 + ["127.0.0.1"] * MAX_HOPS)
    assert applied(DEFAULT, f"X-Forwarded-For: {far}")["client"] == ("127.0.0.1", 0)
    far = ", ".join(["for=9.9.9.9"] * 5000 + ["for=127.0.0.1"] * MAX_HOPS)
    assert applied(DEFAULT, f"Forwarded: {far}")["client"] == ("127.0.0.1", 0)


def test_strip() -> None:
    told = [
        (b"forwarded", b"for=1.2.3.4"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"a"),
        (b"x-forwarded-port", b"1"),
        (b"x-forwarded-prefix", b"/admin"),
        (b"x_forwarded_for", b"1.2.3.4"),
        (b"x-forwarded_proto", b"https"),
        (b"x-real-ip", b"1.2.3.4"),
    ]
    others = [
        (b"host", b"app.test"),
        (b"x-forwarded", b"1"),
        (b"forwarded-by", b"me"),
        (b"cookie", b"a=b"),
        (b"x-real-ips", b"1"),
        (b"cookie", b"c=d"),
    ]
    mixed = [pair for pairs in itertools.zip_longest(others, told) for pair in pairs if pair]
    assert strip_forwarded(mixed) == others
    assert strip_forwarded(others) == others


@pytest.mark.parametrize(
    ("spec", "believe", "strip", "client", "told"),
    [
        (DEFAULT, True, False, "1.2.3.4", True),
        (DEFAULT, True, True, "1.2.3.4", True),
        (DEFAULT, False, True, "127.0.0.1", True),
        ("10.0.0.1", True, False, "127.0.0.1", True),
        ("10.0.0.1", True, True, "127.0.0.1", False),
        ("10.0.0.1", False, True, "127.0.0.1", False),
    ],
)
def test_rules(spec: str, believe: bool, strip: bool, client: str, told: bool) -> None:
    scope = make_scope("X-Forwarded-For: 1.2.3.4")
    ForwardedRules(TrustedPeers(spec), believe, strip).apply(scope)
    assert scope["client"][0] == client
    assert any(name in FORWARDED_FIELDS for name, _ in scope["headers"]) is told


@pytest.mark.parametrize(
    ("spec", "believe", "heard"),
    [("10.0.0.1", True, ["127.0.0.1"]), ("10.0.0.1", False, []), (DEFAULT, True, [])],
)
def test_what_is_ignored_is_told_once(spec: str, believe: bool, heard: list[str]) -> None:
    told: list[str] = []
    rules = ForwardedRules(TrustedPeers(spec), believe, True)
    rules.on_ignored = told.append
    for _ in range(3):
        rules.apply(make_scope("X-Forwarded-For: 1.2.3.4"))
    assert told == heard


def test_the_log_says_who_is_ignored(serve: Serve) -> None:
    """… once, however many say so; nobody who says nothing of others is named."""
    server = serve("tests.apps:app", "--forwarded-allow-ips", "10.0.0.1")
    with server.connect() as client:
        client.get("/hello")
        assert "--forwarded-allow-ips" not in server.log_text()
        for _ in range(3):
            client.get("/hello", "X-Forwarded-For: 1.2.3.4")
    assert server.stop() == 0
    told = re.findall(r".*what 127\.0\.0\.1 says of a client behind it.*", server.log_text())
    assert len(told) == 1 and "--forwarded-allow-ips" in told[0]


# -- the PROXY protocol ------------------------------------------------------------------------


def block(command: int, family: int, payload: bytes, version: int = 2) -> bytes:
    """Build a header of version 2."""
    head = bytes([version * 16 + command, family]) + len(payload).to_bytes(2, "big")
    return PROXY_V2 + head + payload


IPV4_ENDS = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + b"\xd9\x03\x01\xbb"
IPV6_ENDS = (
    bytes.fromhex("20010db8000000000000000000000001")
    + bytes.fromhex("00000000000000000000000000000001")
    + b"\xd9\x03\x01\xbb"
)
# Sent by haproxy 2.6.12 with `send-proxy-v2 proxy-v2-options crc32c,unique-id`.
HAPROXY_WITH_TLVS = (
    b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00:\x7f\x00\x00\x01\x7f\x00\x00\x01\xcc\x98\xe8-"
    b"\x03\x00\x04\xebYa\xc8\x05\x00$a0b47f11-a471-4638-81fa-e818c8e36274"
)

GOOD = [
    # bytes, source, destination
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 55555 443\r\n", ("1.2.3.4", 55555), ("5.6.7.8", 443)),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 65535\r\n", ("1.2.3.4", 0), ("5.6.7.8", 65535)),
    (b"PROXY TCP6 2001:db8::1 ::1 55555 443\r\n", ("2001:db8::1", 55555), ("::1", 443)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, None),  # 107 bytes
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None, None),
    (block(1, 0x11, IPV4_ENDS), ("1.2.3.4", 55555), ("5.6.7.8", 443)),
    (block(1, 0x21, IPV6_ENDS), ("2001:db8::1", 55555), ("::1", 443)),
    (block(1, 0x11, IPV4_ENDS + b"\x04\0\0"), ("1.2.3.4", 55555), ("5.6.7.8", 443)),
    (block(1, 0x11, IPV4_ENDS + b"\x04\0\3abc\x01\0\2h2"), ("1.2.3.4", 55555), ("5.6.7.8", 443)),
    (HAPROXY_WITH_TLVS, ("127.0.0.1", 52376), ("127.0.0.1", 59437)),
    (block(0, 0x00, b""), None, None),
    (block(0, 0x11, IPV4_ENDS), None, None),
    (block(0, 0x11, b"abc"), None, None),  # LOCAL: skipped whatever it is
    (block(0, 0xFF, b"\0" * 99), None, None),
    (block(1, 0x00, b""), None, None),  # UNSPEC
    (block(1, 0x00, b"anything"), None, None),
    (block(1, 0x12, IPV4_ENDS), None, None),  # UDP falls back to UNSPEC
    (block(1, 0x10, IPV4_ENDS), None, None),
    (block(1, 0x31, b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")), None, None),
    (block(1, 0x00, b"\0" * MAX_PROXY_BLOCK), None, None),
]


def read_proxy(pieces: list[bytes]) -> tuple[object, ...]:
    """Feed ``pieces``; return what came of them, in a form that can be compared."""
    reader = ProxyHeader()
    for number, piece in enumerate(pieces):
        reader.receive_data(piece)
        try:
            event = reader.next_event()
        except ProtocolError as exc:
            reader.receive_data(b"more")
            with pytest.raises(ProtocolError):  # and it is final
                reader.next_event()
            return "error", exc.reason
        if event is not NEED_DATA:
            assert isinstance(event, Proxied)
            rest = event.rest + b"".join(pieces[number + 1 :])
            return "proxied", event.source, event.destination, rest
    return ("unfinished",)


@pytest.mark.parametrize(("data", "source", "destination"), GOOD)
@pytest.mark.parametrize("tail", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\n"])
def test_proxy_header(data: bytes, source: object, destination: object, tail: bytes) -> None:
    expected = ("proxied", source, destination, tail)
    pieces_of = splits(data + tail) if len(data) < 300 else iter([[data + tail]])
    for pieces in pieces_of:
        assert read_proxy(pieces) == expected
    if len(data) < 300:
        for cut in range(len(data)):
            assert read_proxy([data[:cut]]) == ("unfinished",)


BAD = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n\r\n\0\r\nQUIX",
    b"\r\nGET / HTTP/1.1\r\n",
    b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY\tTCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
    b"PROXY UNKNOWN\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP6 [::1] [::1] 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 -2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 \xb2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8  \r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 bytes
    b"PROXY TCP4 " + b"1" * 96,  # 107 bytes, and no end
    b"PROXY TCP4 " + b"1" * 5000,
    block(2, 0x11, IPV4_ENDS),
    block(15, 0x11, IPV4_ENDS),
    block(1, 0x11, IPV4_ENDS, version=1),
    block(1, 0x11, IPV4_ENDS, version=3),
    block(1, 0x41, IPV4_ENDS),
    block(1, 0x13, IPV4_ENDS),
    block(1, 0xF1, IPV4_ENDS),
    block(1, 0x11, IPV4_ENDS[:-1]),
    block(1, 0x11, b""),
    block(1, 0x21, IPV4_ENDS),
    block(1, 0x31, IPV6_ENDS),
    block(1, 0x11, IPV4_ENDS + b"\x04"),
    block(1, 0x11, IPV4_ENDS + b"\x04\0"),
    block(1, 0x11, IPV4_ENDS + b"\x04\0\1"),
    block(1, 0x11, IPV4_ENDS + b"\x04\0\0\x04\xff\xffabc"),
    block(1, 0x12, IPV4_ENDS + b"\x04\0\1"),
    block(1, 0x00, b"\0" * (MAX_PROXY_BLOCK + 1)),
    block(0, 0x00, b"\0" * 65535)[:20],  # refused by its length, not when it has all come
]


@pytest.mark.parametrize("data", BAD)
def test_malformed_proxy_header(data: bytes) -> None:
    whole = read_proxy([data])
    assert whole[0] == "error"
    if len(data) < 300:
        for pieces in splits(data):
            assert read_proxy(pieces) == whole
    assert read_proxy([data, b"more"]) == whole


# -- real servers --------------------------------------------------------------------------------


def read_scope(response: Response) -> dict[str, Any]:
    """Read what the app ``scope`` answered."""
    assert response.status == 200, response
    scope: dict[str, Any] = ast.literal_eval(response.body.decode())
    return scope


LINES = ("X-Forwarded-For: 1.2.3.4:5", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.test")


@pytest.mark.parametrize(
    ("arguments", "client", "scheme", "host", "told"),
    [
        ([], "1.2.3.4", "https", b"shop.test", True),
        (["--no-proxy-headers"], "127.0.0.1", "http", b"test", True),
        (["--forwarded-allow-ips", "10.0.0.0/8"], "127.0.0.1", "http", b"test", True),
        (["--forwarded-allow-ips", "127.0.0.0/8"], "1.2.3.4", "https", b"shop.test", True),
        (["--forwarded-allow-ips", "*"], "1.2.3.4", "https", b"shop.test", True),
        (
            ["--forwarded-allow-ips", "10.0.0.1", "--strip-untrusted-forwarded"],
            "127.0.0.1",
            "http",
            b"test",
            False,
        ),
    ],
)
def test_served_headers(
    serve: Serve, arguments: list[str], client: str, scheme: str, host: bytes, told: bool
) -> None:
    with serve("tests.apps:app", *arguments).connect() as connection:
        for lines in (LINES, LINES, ()):
            scope = read_scope(connection.get("/scope", *lines))
            if not lines:  # nothing of the requests before is left
                client, scheme, host, told = "127.0.0.1", "http", b"test", False
            assert scope["client"][0] == client
            assert scope["scheme"] == scheme
            assert dict(scope["headers"])[b"host"] == host
            assert any(name in FORWARDED_FIELDS for name, _ in scope["headers"]) is told


def test_served_over_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    for spec, client in (("unix:", ("1.2.3.4", 5)), ("127.0.0.1", None)):
        path = str(tmp_path / spec.strip(":"))
        serve("tests.apps:app", "--uds", path, "--forwarded-allow-ips", spec)
        with RawClient(path) as connection:
            assert read_scope(connection.get("/scope", *LINES))["client"] == client


def test_a_wrong_entry_stops_the_start() -> None:
    result = run_server("tests.apps:app", "--forwarded-allow-ips", "127.0.0.1,proxy.internal")
    assert result.returncode == 2
    assert "'proxy.internal' is not an IP address" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("data", "client"),
    [
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 55555 443\r\n", ("1.2.3.4", 55555)),
        (block(1, 0x21, IPV6_ENDS + b"\x04\0\0"), ("2001:db8::1", 55555)),
        (b"PROXY UNKNOWN\r\n", None),
        (block(0, 0, b""), None),
    ],
)
def test_served_proxy_header(serve: Serve, data: bytes, client: Any) -> None:
    server = serve("tests.apps:app", "--proxy-protocol")
    request = b"GET /scope HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
    for pieces in (
        [data + request],
        [data, request],
        [data[:5], data[5:] + request[:9], request[9:]],
    ):
        with server.connect() as connection:
            for piece in pieces:
                connection.send(piece)
            seen = tuple(read_scope(connection.read_response())["client"])
            # The header's client may claim nothing; a proxy that speaks for itself may.
            assert seen == (client or ("9.9.9.9", 0))
            connection.send(request)  # the header counts for all of the connection
            assert tuple(read_scope(connection.read_response())["client"]) == seen


def test_served_without_a_proxy_header(serve: Serve) -> None:
    """A trusted peer must send one; from others none is read, and so none is believed."""
    request = b"GET /scope HTTP/1.1\r\nHost: test\r\n\r\n"
    line = b"PROXY TCP4 1.2.3.4 5.6.7.8 5 6\r\n"
    with serve("tests.apps:app", "--proxy-protocol").connect() as connection:
        connection.send(request)
        assert connection.read_until_close() == b""
    server = serve("tests.apps:app", "--proxy-protocol", "--forwarded-allow-ips", "10.0.0.1")
    with server.connect() as connection:
        connection.send(request)
        assert read_scope(connection.read_response())["client"][0] == "127.0.0.1"
    with server.connect() as connection:
        connection.send(line + request)
        assert connection.read_response().status == 400


class HAProxy:
    """A real haproxy on a free port, in front of ``port``; the listening socket is handed over."""

    def __init__(self, directory: Path, port: int, options: str, mode: str = "tcp") -> None:
        haproxy = shutil.which("haproxy")
        if haproxy is None:
            pytest.skip("haproxy is not installed")
        config = directory / "haproxy.cfg"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.address = listening.getsockname()
            config.write_text(
                f"defaults\n mode {mode}\n timeout connect 5s\n timeout client 5s\n"
                f" timeout server 5s\nlisten test\n bind fd@{listening.fileno()}\n"
                f" server app 127.0.0.1:{port} {options}\n"
            )
            self.process = subprocess.Popen(
                [haproxy, "-db", "-f", str(config)],
                pass_fds=[listening.fileno()],
                stderr=subprocess.PIPE,
            )

    def __enter__(self) -> HAProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_what_a_real_haproxy_sends(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as behind:
        behind.settimeout(DEADLINE)
        with HAProxy(tmp_path, behind.getsockname()[1], option) as haproxy:
            with socket.create_connection(haproxy.address, DEADLINE) as client:
                client.sendall(b"hello")
                with behind.accept()[0] as connection:
                    connection.settimeout(DEADLINE)
                    reader, event = ProxyHeader(), NEED_DATA
                    while event is NEED_DATA:
                        data = connection.recv(1024)
                        assert data, "haproxy closed the connection inside its header"
                        reader.receive_data(data)
                        event = reader.next_event()
                assert event.source == client.getsockname()
                assert event.destination == client.getpeername()
                assert b"hello".startswith(event.rest)


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_behind_a_real_haproxy(serve: Serve, option: str, tmp_path: Path) -> None:
    """Clients are known by their own addresses, and haproxy's health checks find the server up."""
    server = serve("tests.apps:app", "--proxy-protocol")
    options = f"{option} check check-send-proxy inter 50ms"
    with HAProxy(tmp_path, server.port, options) as haproxy:
        for _ in range(3):
            with RawClient(haproxy.address) as client:
                for _ in range(2):
                    scope = read_scope(client.get("/scope"))
                    assert tuple(scope["client"]) == client.socket.getsockname()
                    assert tuple(scope["server"]) == haproxy.address
    assert "Traceback" not in server.log_text()


def test_behind_a_real_haproxy_that_writes_headers(serve: Serve, tmp_path: Path) -> None:
    server = serve("tests.apps:app")
    directives = "\n option forwardfor\n http-request set-header X-Forwarded-Proto https"
    with HAProxy(tmp_path, server.port, directives, "http") as haproxy:
        with RawClient(haproxy.address) as client:
            # All that haproxy adds is 127.0.0.1, a trusted hop: so the client's own word is next.
            for told, expected in ((), "127.0.0.1"), (("X-Forwarded-For: 1.2.3.4",), "1.2.3.4"):
                scope = read_scope(client.get("/scope", *told))
                assert tuple(scope["client"]) == (expected, 0)
                assert scope["scheme"] == "https"


# -- fuzz --------------------------------------------------------------------------------------

WORDS = (
    'for= proto= host= by= ; , , " \\ \\" = : [ ] [::1] 1.2.3.4 10.0.0.1 127.0.0.1 ::1 :55 :65536 '
    "2001:db8::1 unknown unix: _hid https http wss ftp a.test * \xe9 \xb2 \x85 \xa0 %00 9999999999"
).split(" ") + ["\t", " "]
FIELDS = (
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "Forwarded",
)


def test_junk_in_header_fields_never_fails() -> None:
    chance = random.Random(7239)
    specs = [TrustedPeers(spec) for spec in (DEFAULT, "*", "127.0.0.1,10.0.0.0/8,unix:")]
    changed = 0
    for _ in range(10_000):
        lines = [
            f"{chance.choice(FIELDS)}: {''.join(chance.choices(WORDS, k=chance.randrange(6)))}"
            for _ in range(chance.randrange(1, 4))
        ]
        scope = make_scope(*lines, kind=chance.choice(("http", "websocket")))
        before = dict(scope)
        apply_forwarded(scope, chance.choice(specs))
        host, port = scope["client"]
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        assert 0 <= port < 65536
        assert scope["scheme"] in ("http", "https", "ws", "wss")
        assert len([name for name, _ in scope["headers"] if name == b"host"]) == 1
        changed += scope != before
    assert changed > 1000, "the junk is too junky to test anything"


def test_mutated_proxy_headers() -> None:
    chance = random.Random(107)
    seeds = [data for data, _, _ in GOOD if len(data) < 300]
    outcomes = set()
    for _ in range(10_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            position = chance.randrange(len(data))
            action = chance.randrange(3)
            if action == 0:
                data[position] = chance.randrange(256)
            elif action == 1:
                del data[position]
            else:
                data.insert(position, chance.choice(b" \r\n\0019:."))
        whole = read_proxy([bytes(data)])
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
        pieces = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)])]
        assert read_proxy(pieces) == whole
        outcomes.add(whole[0])
    assert outcomes == {"proxied", "error", "unfinished"}


def test_long_junk_takes_linear_time() -> None:
    trusted = TrustedPeers("*")

    def run(size: int) -> Callable[[], None]:
        scope = make_scope("Forwarded: " + '"a;=",' * size, "Forwarded: " + ";,=" * size)
        return lambda: apply_forwarded(dict(scope), trusted)

    assert_linear(run(5_000), run(10_000))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from selectserve.forwarded import TrustedPeers, apply_forwarded; "
        "t = TrustedPeers('127.0.0.1,::1,10.0.0.0/8'); assert '10.1.2.3' in t; "
        "print('ipaddress' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
