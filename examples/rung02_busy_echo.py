"""02 · A busy non-blocking echo: nobody waits, and nobody rests.

Read first:  rung01_blocking_echo.
New here:    setblocking(False). A call that would have waited raises BlockingIOError instead, so
             that one thread can ask every client in turn, and all of them are served.
Still wrong: it asks all the time. With nothing to do it takes a whole core to hear "nothing yet"
             some hundred thousand times a second. (It has a second fault, which is easier to see
             when it is quiet: that is for rung 03.)

    python -m examples.rung02_busy_echo 8000
"""

import contextlib
import socket
import sys


def listen(port, host="127.0.0.1"):
    listener = socket.create_server((host, int(port)))
    listener.setblocking(False)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    return listener


def serve(listener):
    clients = []
    while True:  # never waits, and so never stops
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            client.setblocking(False)
            clients.append(client)
        for client in clients[:]:
            if not echo(client):
                clients.remove(client)
                client.close()


def echo(client):
    """Echo one piece if there is one; return False when the client has left."""
    try:
        data = client.recv(1024)
        client.send(data)
    except BlockingIOError:
        return True  # nothing to do for this one now: ask the next
    except ConnectionError:
        return False
    return data != b""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(listen(*sys.argv[:0:-1]))
