"""certificates: what TLS shows and asks for: keys, certificates, who gets which, their renewal.

Certificates is made of the options before anything listens, so that a bad file is one line and
exit code 1. It begins the TLS session of each connection with the newest contexts: at most once
a second it looks whether a file has changed (a signal makes it look at once), and what cannot be
loaded then is logged while the old ones serve on. Several certificates are told apart by the
name that the client asks for (SNI, RFC 6066 §3). ``ssl`` is imported here, and only when asked.
"""

from __future__ import annotations

import os

from .errors import ConfigError
from .logs import error_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import MemoryBIO, SSLContext, SSLObject
    from typing import Any, Callable

    from .config import Config

    Stamp = list[tuple[int, int, int]]

LOOK_INTERVAL = 1.0  # seconds between two looks at the files
TLS_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
# What uvicorn's users write: the numbers of ssl.PROTOCOL_*; 2 and 17 mean all that is safe.
TLS_PROTOCOLS = {"2": "", "17": "", "3": "=TLSv1", "4": "=TLSv1.1", "5": "=TLSv1.2"}
CERT_REQS = {"0": "NONE", "1": "OPTIONAL", "2": "REQUIRED"}
TLS_TROUBLES = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "key values mismatch": "the key does not belong to the certificate",
    "PEM lib": "it is not in PEM format",
    "no start line": "it is not in PEM format",
}


class Certificates:
    """The TLS contexts of a server: one for each certificate, the first for unknown names.

    ``make`` builds them all anew, ``files`` are what it reads.
    """

    def __init__(self, make: Callable[[], list[SSLContext]], files: list[str]) -> None:
        import ssl

        self.make = make
        self.files = files
        self.bio = ssl.MemoryBIO
        self.stamp = self.look()
        self.next_look = 0.0
        self.contexts: list[SSLContext] = []
        self.pems: list[str | None] = []
        self.names: list[set[str]] = []
        self.suites: dict[str, int] = {}
        self.load()

    def __repr__(self) -> str:
        return f"<Certificates for {self.names}>"

    def load(self) -> None:
        """Load what the files hold now; raise ConfigError, and change nothing, if that fails."""
        contexts = self.make()
        pems = list(map(first_certificate, self.certificate_files(contexts)))
        self.names = [certificate_names(pem_to_der(pem)) if pem else set() for pem in pems]
        self.contexts, self.pems = contexts, pems
        # ssl tells a suite by name only; its IANA number is the low half of OpenSSL's id
        self.suites = {
            cipher["name"]: cipher["id"] & 0xFFFF
            for context in contexts
            for cipher in context.get_ciphers()
        }
        if len(contexts) > 1:
            contexts[0].sni_callback = self.choose

    def certificate_files(self, contexts: list[SSLContext]) -> list[str]:
        """Return the certificate's file for each context, "" where it is not known."""
        return self.files[: len(contexts)] or [""] * len(contexts)

    def look(self) -> Stamp:
        """Return what changes when one of the files does."""
        stamp = []
        for file in self.files:
            try:
                status = os.stat(file)
            except OSError:
                stamp.append((0, 0, 0))  # being replaced just now
            else:
                stamp.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return stamp

    def renew(self, force: bool = False) -> None:
        """Load the files again if they have changed; keep what there is when they are bad."""
        stamp = self.look()
        if stamp == self.stamp and not force:
            return
        self.stamp = stamp
        try:
            self.load()
        except Exception as exc:  # ours are ConfigErrors; a user's factory may raise anything
            error_logger.error("the old certificate stays in use: %s", exc)
        else:
            error_logger.info("certificates loaded again")

    def begin(self, now: float) -> tuple[SSLObject, MemoryBIO, MemoryBIO]:
        """Begin a TLS session: returns it with its two ends, what comes in and what goes out."""
        if now >= self.next_look:
            self.next_look = now + LOOK_INTERVAL
            self.renew()
        incoming, outgoing = self.bio(), self.bio()
        return self.contexts[0].wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing

    def choose(self, session: SSLObject, name: str | None, _context: SSLContext) -> None:
        """Switch to the certificate for ``name``; called by ssl during the handshake."""
        name = (name or "").lower()
        for wanted in (name, "*." + name.partition(".")[2]):
            for context, names in zip(self.contexts, self.names):
                if wanted in names:
                    session.context = context
                    return

    def describe(self, session: SSLObject) -> dict[str, Any]:
        """Tell what was agreed on, in the words of the ASGI TLS extension."""
        pem = None
        for context, known in zip(self.contexts, self.pems):
            if context is session.context:
                pem = known
        chain = client_chain(session)
        cipher = session.cipher()
        return {
            "server_cert": pem,
            "client_cert_chain": tuple(map(der_to_pem, chain)),
            "client_cert_name": distinguished_name(chain[0]) if chain else None,
            "client_cert_error": None,  # one that does not verify has failed the handshake
            "tls_version": TLS_VERSIONS.get(session.version() or ""),
            "cipher_suite": self.suites.get(cipher[0]) if cipher else None,
        }


def client_chain(session: SSLObject) -> list[bytes]:
    """Return the certificates that the client sent as DER, its own first; none without mTLS."""
    leaf = session.getpeercert(True)
    if leaf is None:
        return []
    ask = getattr(session, "get_unverified_chain", None)  # since Python 3.13
    chain = ask() if ask is not None else None
    return list(chain) if chain else [leaf]


# -- from options to contexts ------------------------------------------------------------------


def make_certificates(config: Config) -> Certificates | None:
    """Return what the ``--ssl-*`` options ask for, None for plain HTTP; raise ConfigError."""
    factory = config.ssl_context_factory
    if not config.ssl_certfile and factory is None:
        if config.ssl_keyfile or config.ssl_ca_certs or client_demand(config) != "NONE":
            raise ConfigError("TLS needs a certificate: give --ssl-certfile", 2)
        return None
    pairs = certificate_pairs(config)
    try:
        import ssl  # noqa: F401
    except ImportError:
        raise ConfigError(
            "this Python was built without ssl: let a proxy in front speak TLS, or use another "
            "Python"
        ) from None

    def make() -> list[SSLContext]:
        if factory is None:
            return [make_context(config, *pair) for pair in pairs]
        context = factory(config, lambda: make_context(config, *default_pair(pairs)))
        if not hasattr(context, "wrap_bio"):
            raise ConfigError(f"ssl_context_factory returned {context!r}, not an ssl.SSLContext")
        return [context]

    files = [certificate for certificate, _ in pairs]
    files += [key for _, key in pairs if key]
    if config.ssl_ca_certs:
        files.append(os.fspath(config.ssl_ca_certs))
    return Certificates(make, files)


def certificate_pairs(config: Config) -> list[tuple[str, str | None]]:
    """Return (certificate file, key file or None when the same file holds both)."""
    certificates = list(map(os.fspath, config.ssl_certfile))
    keys: list[str | None] = list(map(os.fspath, config.ssl_keyfile))
    if keys and len(keys) != len(certificates):
        raise ConfigError("give one --ssl-keyfile for each --ssl-certfile, in the same order", 2)
    return list(zip(certificates, keys or [None] * len(certificates)))


def default_pair(pairs: list[tuple[str, str | None]]) -> tuple[str, str | None]:
    """Return the first pair, for a factory that begins with what the options say."""
    if not pairs:
        raise ConfigError("ssl_context_factory asks for the default context: give ssl_certfile")
    return pairs[0]


def make_context(config: Config, certificate: str, key: str | None) -> SSLContext:
    """Make the context for one certificate; raise ConfigError that says what is wrong with it."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    limit_versions(context, config.ssl_version)
    # A client that renegotiates makes us do the costly half of a handshake as often as it likes.
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    context.set_alpn_protocols(["http/1.1"])
    load_key(context, certificate, key, config.ssl_keyfile_password)
    if config.ssl_ciphers:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError:
            raise ConfigError(f"--ssl-ciphers: no such cipher {config.ssl_ciphers!r}") from None
    if config.ssl_ca_certs:
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except OSError as exc:
            raise ConfigError(f"--ssl-ca-certs {config.ssl_ca_certs}: {tls_trouble(exc)}") from None
    wanted = client_demand(config)
    if wanted != "NONE" and not config.ssl_ca_certs and not context.cert_store_stats()["x509_ca"]:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = getattr(ssl, "CERT_" + wanted)
    return context


def client_demand(config: Config) -> str:
    """Return whether clients show certificates: NONE, OPTIONAL, REQUIRED."""
    reqs = config.ssl_cert_reqs
    wanted = reqs.upper().replace("CERT_", "")
    wanted = CERT_REQS.get(wanted, wanted)
    if wanted not in CERT_REQS.values():
        raise ConfigError(f"--ssl-cert-reqs {reqs}: none, optional or required", 2)
    return wanted


def limit_versions(context: SSLContext, wanted: str) -> None:
    """Allow ``TLSv1.2`` and later, ``=TLSv1.2`` alone; uvicorn's numbers are understood."""
    import ssl

    wanted = TLS_PROTOCOLS.get(wanted, wanted) or "TLSv1.2"
    name = wanted.lstrip("=")
    if name not in TLS_VERSIONS:
        raise ConfigError(f"--ssl-version {wanted}: one of {', '.join(TLS_VERSIONS)}", 2)
    version = ssl.TLSVersion(TLS_VERSIONS[name])
    try:
        context.minimum_version = version
        if wanted.startswith("="):
            context.maximum_version = version
    except ValueError:
        raise ConfigError(f"--ssl-version: this OpenSSL does not speak {name}") from None


def load_key(context: SSLContext, certificate: str, key: str | None, password: str) -> None:
    """Load a certificate with its key; the message names the file that is to blame."""
    for option, file in (("--ssl-certfile", certificate), ("--ssl-keyfile", key)):
        try:
            if file:
                with open(file, "rb"):
                    pass
        except OSError as exc:
            raise ConfigError(f"{option} {file}: {exc.strerror}") from None
    try:
        # Without a password OpenSSL would ask on the terminal, and a renewal would hang there.
        context.load_cert_chain(certificate, key, password or "")
    except (OSError, ValueError) as exc:
        files = certificate if key is None else f"{certificate} with --ssl-keyfile {key}"
        trouble = tls_trouble(exc)
        with open(key or certificate, "rb") as stream:
            data = stream.read()
        if b"ENCRYPTED" in data and trouble != TLS_TROUBLES["KEY_VALUES_MISMATCH"]:
            trouble = "the key is encrypted, and --ssl-keyfile-password is "
            trouble += "wrong" if password else "not given"
        elif key is None and PEM_BEGIN.encode() in data and b" PRIVATE KEY-" not in data:
            trouble = "there is no key in it: give --ssl-keyfile"
        raise ConfigError(f"--ssl-certfile {files}: {trouble}") from None


def tls_trouble(exc: Exception) -> str:
    """Say what OpenSSL means."""
    text = str(exc)
    for mark, meaning in TLS_TROUBLES.items():
        if mark in text:
            return meaning
    return getattr(exc, "reason", None) or getattr(exc, "strerror", None) or text


# -- what stands in a certificate (X.509, RFC 5280 §4.1) ---------------------------------------

PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
PEM_END = "-----END CERTIFICATE-----"
ALT_NAMES = b"\x55\x1d\x11"  # id-ce-subjectAltName
COMMON_NAME = b"\x55\x04\x03"
# RFC 4514 §3, and the one that everybody meets besides
ATTRIBUTE_NAMES = {
    COMMON_NAME: "CN",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x09": "STREET",
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19": "DC",
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01": "UID",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01": "emailAddress",
}
STRING_ENCODINGS = {0x1E: "utf-16-be", 0x1C: "utf-32-be", 0x14: "latin-1"}  # the rest is UTF-8


def first_certificate(file: str) -> str | None:
    """Return the PEM of the first certificate in ``file``, which is the server's own."""
    if not file:
        return None
    with open(file, encoding="latin-1") as stream:
        text = stream.read()
    body = text.partition(PEM_BEGIN)[2].partition(PEM_END)[0]
    return f"{PEM_BEGIN}{body}{PEM_END}\n" if body else None


def pem_to_der(pem: str) -> bytes:
    """Undo the armour of one certificate."""
    from binascii import a2b_base64

    return a2b_base64(pem.partition(PEM_BEGIN)[2].partition(PEM_END)[0])


def der_to_pem(der: bytes) -> str:
    """Armour one certificate (RFC 7468)."""
    from binascii import b2a_base64

    text = b2a_base64(der, newline=False).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join((PEM_BEGIN, *lines, PEM_END, ""))


def der_items(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return tag, content and both encoded, for each element that stands in ``data``."""
    items = []
    at = 0
    while at < len(data):
        begin, tag, size = at, data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        items.append((tag, data[at : at + size], data[begin : at + size]))
        at += size
    return items


def der_inside(data: bytes) -> list[bytes]:
    """Return the contents of the elements in ``data``."""
    return [content for _, content, _ in der_items(data)]


def certificate_fields(der: bytes) -> tuple[bytes, bytes]:
    """Return the subject, and the extensions, of a certificate."""
    items = der_items(der_inside(der_inside(der)[0])[0])
    if items[0][0] == 0xA0:  # [0] version, which version 1 leaves out
        del items[0]
    extensions = next((content for tag, content, _ in items if tag == 0xA3), b"")
    return items[4][1], extensions


def certificate_names(der: bytes) -> set[str]:
    """Return the host names a certificate is for, in lower case; the CN if it has no others."""
    subject, extensions = certificate_fields(der)
    names = []
    for extension in der_inside(der_inside(extensions)[0]) if extensions else ():
        kind, *_, value = der_inside(extension)
        if kind == ALT_NAMES:
            names += [name for tag, name, _ in der_items(der_inside(value)[0]) if tag == 0x82]
    if not names:
        pairs = [
            der_inside(pair) for relative in der_inside(subject) for pair in der_inside(relative)
        ]
        names = [value for kind, value in pairs if kind == COMMON_NAME]
    return {name.decode("latin-1").lower() for name in names}


def distinguished_name(der: bytes) -> str:
    """Return the subject of a certificate as RFC 4514 writes it, the last part first."""
    names = []
    for relative in der_inside(certificate_fields(der)[0]):
        names.append("+".join(map(attribute_text, der_inside(relative))))
    return ",".join(reversed(names))


def attribute_text(pair: bytes) -> str:
    """Write one type and value (RFC 4514 §2.3 and §2.4)."""
    (_, kind, _), (tag, value, encoded) = der_items(pair)
    name = ATTRIBUTE_NAMES.get(kind)
    if name is None:
        return f"{dotted_oid(kind)}=#{encoded.hex()}"
    text = value.decode(STRING_ENCODINGS.get(tag, "utf-8"), "replace")
    escaped = "".join("\\" + char if char in '"+,;<>\\' else char for char in text)
    escaped = escaped.replace("\0", "\\00")
    if escaped[:1] in (" ", "#"):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and text != " ":
        escaped = escaped[:-1] + "\\ "
    return f"{name}={escaped}"


def dotted_oid(data: bytes) -> str:
    """Write an object identifier, e.g. ``2.5.4.5``."""
    numbers, number = [], 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))
