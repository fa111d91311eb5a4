"""How each server is told to serve an app: the same for all, as far as their options go.

One process, 127.0.0.1, a backlog of 2048, idle connections kept for long, no lifespan where it can
be switched off, uvloop where it can be used, the access log only where the workload says so.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .environment import BENCH, ROOT, plain_environment

OURS = "selectserve"
LOGGING = {True: ["--access-log"], False: ["--no-access-log", "--log-level", "warning"]}
NGINX = """daemon off; master_process off; user root; pid {home}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; scgi_temp_path {home}/scgi;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi;
  server {{ listen 127.0.0.1:{port} backlog=2048; root {home}; }}
}}
"""


class CannotServe(Exception):
    """This server does not serve this workload; the text says why."""


@dataclass(frozen=True)
class Order:
    """What a server is asked to serve."""

    app: str  # in tests.bench: `apps:hello`
    path: str = "/"
    access_log: bool = False
    certificate: str | None = None  # a PEM file with the key in it
    file: str | None = None  # what download apps answer
    prefix: tuple[str, ...] = ()  # a program that runs the server: valgrind, strace
    environment: dict[str, str] = field(default_factory=dict)

    def module(self, python: str, name: str, options: str) -> list[str]:
        """Return the command `python -m name app options…`."""
        return [python, "-m", name, f"tests.bench.{self.app}", *options.split()]

    def tls(self, certificate: str, key: str) -> list[str]:
        """Return the options that name the certificate, if there is one."""
        if self.certificate is None:
            return []
        return [certificate, self.certificate, key, self.certificate]


@functools.cache
def help_text(python: str) -> str:
    """Return what `python -m selectserve --help` says."""
    command = [python, "-m", "selectserve", "--help"]
    environment = plain_environment()
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    return run.stdout


def selectserve(python: str, order: Order, port: int) -> list[str]:
    """Return our command line, without what this version does not know yet."""
    command = order.module(python, "selectserve", f"--host 127.0.0.1 --port {port}")
    known = help_text(python)
    for option, value in (("--lifespan", "off"), ("--timeout-keep-alive", "600")):
        if option in known:
            command += [option, value]
    if order.certificate is not None and "--ssl-certfile" not in known:
        raise CannotServe("no --ssl-certfile yet")
    return command + order.tls("--ssl-certfile", "--ssl-keyfile") + LOGGING[order.access_log]


def pypy(python: str, order: Order, port: int) -> list[str]:
    """Return our command line under PyPy."""
    found = shutil.which("pypy3") or shutil.which("pypy3.9")
    if found is None:
        raise CannotServe("no pypy3 on PATH; on Debian: apt-get install pypy3")
    return selectserve(found, order, port)


def uvicorn(python: str, order: Order, port: int, how: str) -> list[str]:
    """Return uvicorn's command line; `how` chooses its loop and its parsers."""
    options = f"--host 127.0.0.1 --port {port} --lifespan off --timeout-keep-alive 600 {how}"
    command = order.module(python, "uvicorn", options)
    return command + order.tls("--ssl-certfile", "--ssl-keyfile") + LOGGING[order.access_log]


def uvicorn_standard(python: str, order: Order, port: int) -> list[str]:
    return uvicorn(python, order, port, "--loop uvloop --http httptools --ws websockets-sansio")


def uvicorn_h11(python: str, order: Order, port: int) -> list[str]:
    return uvicorn(python, order, port, "--loop asyncio --http h11")


def uvicorn_wsproto(python: str, order: Order, port: int) -> list[str]:
    return uvicorn(python, order, port, "--loop uvloop --http httptools --ws wsproto")


def granian(python: str, order: Order, port: int) -> list[str]:
    """Return granian's command line; its back-pressure limits how many connections it lets in."""
    options = (
        f"--host 127.0.0.1 --port {port} --interface asginl --http 1 --loop uvloop --workers 1 "
        "--runtime-threads 1 --backlog 2048 --backpressure 16384 "
        "--http1-header-read-timeout 60000"  # the most it allows
    )
    command = order.module(python, "granian", options)
    return command + order.tls("--ssl-certificate", "--ssl-keyfile") + LOGGING[order.access_log]


def hypercorn(python: str, order: Order, port: int) -> list[str]:
    """Return hypercorn's command line; no workers means that the process itself serves."""
    options = f"--bind 127.0.0.1:{port} --workers 0 --worker-class uvloop --backlog 2048"
    options += " --keep-alive 600"
    options += " --access-logfile -" if order.access_log else " --log-level warning"
    command = order.module(python, "hypercorn", options)
    return command + order.tls("--certfile", "--keyfile")


def floor(python: str, order: Order, port: int) -> list[str]:
    return [python, str(BENCH / "floor.py"), str(port)]


def nginx(python: str, order: Order, port: int) -> list[str]:
    """Return nginx's command line: one process that sends the file with sendfile."""
    program = shutil.which("nginx")
    if program is None:
        raise CannotServe("no nginx on PATH; on Debian: apt-get install nginx-light")
    if order.file is None:
        raise CannotServe("nginx serves files only")
    home = Path(order.file).parent
    configuration = home / "nginx.conf"
    configuration.write_text(NGINX.format(home=home, port=port))
    return [program, "-c", str(configuration), "-e", "stderr"]


COMMANDS = {
    OURS: selectserve,
    "uvicorn": uvicorn_standard,
    "uvicorn-h11": uvicorn_h11,
    "uvicorn-wsproto": uvicorn_wsproto,
    "granian": granian,
    "hypercorn": hypercorn,
    "floor": floor,
    "nginx": nginx,
    "pypy": pypy,
}
