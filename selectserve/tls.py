"""tls: the same transport, through OpenSSL: the few methods that differ.

OpenSSL never sees the socket. What is received goes into one memory buffer, what OpenSSL has to
say comes out of another and is written like anything else; so watermarks, flush, linger and the
write deadline stay as they are, a handshake is bytes in and bytes out, and neither direction can
wait for the other. What comes in is taken by the step that is due:

    take_hello -> take_handshake -> take_records

All that was received is decrypted at once: nothing stays behind inside OpenSSL unseen.
"""

from __future__ import annotations

from .errors import ProtocolError
from .transport import JOIN_LIMIT, READ_SIZE, Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Callable

    from .certificates import Certificates
    from .reactor import Reactor

WANT_READ = 2  # ssl.SSL_ERROR_WANT_READ
RECORD_SIZE = 16384  # bytes of plaintext in one record at most (RFC 8446 §5.1)
CIPHERTEXT_PIECE = 65536
PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s"
)
PLAIN_TEXT = b"This port speaks HTTPS, and that was plain HTTP: write https:// instead.\n"


class TLSTransport(Transport):
    """A transport whose bytes are encrypted; ``on_secure`` is called after the handshake.

    ``secure`` is None until then. A failed handshake ends in ``connection_lost`` with the reason.
    """

    __slots__ = ("certificates", "failure", "incoming", "on_secure", "outgoing", "take", "tls")

    sends_files = False  # the kernel does not know our keys

    def __init__(
        self,
        certificates: Certificates,
        reactor: Reactor,
        sock: socket.socket,
        number: int = 0,
        peer: tuple[str, int] | None = None,
        local: tuple[str, int | None] | None = None,
        write_timeout: float = 60.0,
    ) -> None:
        super().__init__(reactor, sock, number, peer, local, write_timeout)
        self.certificates = certificates
        self.tls, self.incoming, self.outgoing = certificates.begin(reactor.now)
        self.take: Callable[[bytes], None] = self.take_hello
        self.on_secure: Callable[[], object] | None = None
        self.failure: Exception | None = None

    # -- in ------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Let the step that is due take ``data``; b"" is the end of the stream."""
        self.take(data)

    def take_hello(self, data: bytes) -> None:
        """Tell TLS from plain HTTP by its first byte: a record begins with 22, not a letter."""
        if data[:1].isalpha():
            super().write([PLAIN_ANSWER % (len(PLAIN_TEXT), PLAIN_TEXT)])
            self.fail(ProtocolError("plain HTTP on a port that speaks HTTPS"))
            return
        self.take = self.take_handshake
        self.take_handshake(data)

    def take_handshake(self, data: bytes) -> None:
        """Shake hands as far as the client's bytes go."""
        if not data:
            self.lost(ConnectionResetError("left during the TLS handshake"))
            return
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
        except OSError as exc:
            self.write_sealed()  # our part of the handshake, or the alert that says what is wrong
            if exc.errno != WANT_READ:
                self.fail(exc)
            return
        self.write_sealed()
        self.secure = self.certificates.describe(self.tls)
        if self.trace:
            self.trace("secure", self, self.tls.version(), *(self.tls.cipher() or ())[:1])
        self.take = self.take_records
        if self.on_secure is not None:
            self.on_secure()
        if self.incoming.pending:  # the client did not wait for our last word
            self.decrypt()

    def take_records(self, data: bytes) -> None:
        """Decrypt what has come; the end without a close_notify is an end too."""
        if data:
            self.incoming.write(data)
            self.decrypt()
        else:
            self.end_input()

    def decrypt(self) -> None:
        """Hand over all that OpenSSL can make of what it was given."""
        pieces = []
        ended = False
        failure: Exception | None = None
        try:
            while not ended:
                piece = self.tls.read(READ_SIZE)
                ended = not piece  # close_notify: the client will say no more
                pieces.append(piece)
                if not self.incoming.pending:
                    break
        except OSError as exc:
            if exc.errno != WANT_READ:
                failure = exc
        self.write_sealed()  # an answer to a key update, or an alert
        plain = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if plain:
            self.protocol.data_received(plain)
        if failure is not None:
            self.fail(failure)
        elif ended:
            self.end_input()

    def end_input(self) -> None:
        """The client will send nothing more."""
        if self.state == "open":
            self.reading = False
            self.protocol.eof_received()
            self.update_interest()

    # -- out -----------------------------------------------------------------------------------

    def write(self, pieces: list[bytes]) -> None:
        """Encrypt ``pieces`` and gather them."""
        if self.state != "open":
            return
        write = self.tls.write
        if len(pieces) > 1 and sum(map(len, pieces)) <= JOIN_LIMIT:
            pieces = [b"".join(pieces)]  # few records, and one send
        sealed = []
        for piece in pieces:
            view = memoryview(piece)
            done = 0
            while done < len(piece):  # OpenSSL takes one record at a time
                done += write(view[done : done + RECORD_SIZE])
                if self.outgoing.pending >= CIPHERTEXT_PIECE:
                    sealed.append(self.outgoing.read())
        if self.outgoing.pending:
            sealed.append(self.outgoing.read())
        super().write(sealed)

    def write_sealed(self) -> None:
        """Write what OpenSSL has to say for itself."""
        if self.outgoing.pending:
            super().write([self.outgoing.read()])

    # -- the ends ------------------------------------------------------------------------------

    def close(self) -> None:
        """Say close_notify after what is left, so that a cut is not taken for an end; close."""
        self.write_close_notify()
        super().close()

    def linger(self) -> None:
        """The same, in a way that lets the client read it."""
        self.write_close_notify()
        super().linger()

    def write_close_notify(self) -> None:
        """Append our close_notify; the client's is not waited for (RFC 8446 §6.1)."""
        if self.state == "open" and self.secure is not None:
            try:
                self.tls.unwrap()
            except OSError:
                pass  # "want read": it has not said its own
            self.write_sealed()

    def fail(self, exc: Exception) -> None:
        """End a session that cannot go on, once the alert that says so is sent."""
        if self.state == "open":
            self.failure = exc
            super().linger()

    def lost(self, exc: Exception | None) -> None:
        """Release everything; the step that would be next refers to ourselves."""
        self.take = ignore_data
        super().lost(self.failure or exc)


def ignore_data(_data: bytes) -> None:
    """Take what comes after the end."""
