"""10 · The real server, traced.

Read first:  rung09_chat, and then the package, in the order in which it is imported: reactor,
             listener, transport; http1, websocket; task, asgi; connection, server. You have met
             all of them. The rooms are larger than the rungs because the world is.
New here:    nothing but the trace: every readiness, read, event, step, message, write and close of
             a request in the words of the ladder, as it happens.
Still wrong: this is where you come in.

    python -m examples.rung10_selectserve 8000        then, elsewhere: curl -i localhost:8000
    python -m selectserve examples.hello:app --trace  is the same
"""

import sys

import selectserve


def serve(port, host="127.0.0.1"):
    selectserve.run("examples.hello:app", host=host, port=int(port), trace=True)


if __name__ == "__main__":
    serve(*sys.argv[:0:-1])
