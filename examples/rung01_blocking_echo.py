"""01 · A blocking echo: the server that everybody writes first.

Read first:  nothing; you know sockets. This is accept, recv and sendall, and a client for them.
New here:    the echo. What comes is sent back, in pieces of 1024 bytes, until the client is done.
Still wrong: it serves one client at a time. The second one is connected by the kernel, which says
             nothing to us: it may send, and hears nothing until the first one has left.

    python -m examples.rung01_blocking_echo 8000           the server, in one terminal
    python -m examples.rung01_blocking_echo client 8000    the client, in another, and in a third
"""

import contextlib
import socket
import sys


def listen(port, host="127.0.0.1"):
    listener = socket.create_server((host, int(port)))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    return listener


def serve(listener):
    while True:
        client, _ = listener.accept()  # waits until somebody connects
        with client, contextlib.suppress(ConnectionError):  # a client may leave without a word
            echo(client)


def echo(client):
    while data := client.recv(1024):  # waits until something comes; b"" is the end
        client.sendall(data)  # waits until all of it has been taken


def talk(port, host="127.0.0.1"):
    """Send what is typed, line by line, and print what comes back."""
    with socket.create_connection((host, int(port))) as server:
        replies = server.makefile(encoding="utf-8")
        for line in sys.stdin:
            server.sendall(line.encode())
            print(replies.readline(), end="", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[:0:-1]  # PORT [HOST], the other way round
    with contextlib.suppress(KeyboardInterrupt):
        if "client" in arguments:
            arguments.remove("client")
            talk(*arguments)
        else:
            serve(listen(*arguments))
