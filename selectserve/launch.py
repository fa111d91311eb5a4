"""launch: from options to an exit code: one server here, or a supervisor and its workers.

``run`` is for programs, ``serve`` for the command line; both come here again in the processes that
a supervisor starts anew, which learn from the environment who they are.
"""

from __future__ import annotations

import os
import sys

from .config import Config
from .errors import ConfigError
from .logs import error_logger
from .process import can_fork, check_platform, ignore_signals, run_spawned, take_role
from .server import Server, prepare
from .sockets import check_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .supervisor import Supervisor


def run(app: Any = None, **options: Any) -> None:
    """Serve ``app`` (an import string or the app itself) until Ctrl-C; options as in Config.

    Raises ConfigError for an option that does not exist. Else exits the process with uvicorn's
    codes when it cannot start: 1 for the app, 2 for usage, 3 for start-up.
    """
    code = serve(Config(app, **options))
    if code:
        sys.exit(code)


def serve(config: Config) -> int:
    """Serve with ``config``; return the exit code. What the app raises on import is shown."""
    role = take_role(os.environ)
    if role is not None and role.kind == "worker":
        sys.exit(run_spawned(config, role))  # what comes behind run() is not for a worker
    made: Server | Supervisor | int
    if config.reload:
        from .reload import Reloader

        made = prepare(config, lambda: Reloader(config))
    elif wants_workers(config) or role:
        from .supervisor import Supervisor

        made = prepare(config, lambda: Supervisor(config, role))
    else:
        ignore_signals("SIGUSR2", say="SIGUSR2 needs a supervisor (--workers 2): nothing is done")
        made = prepare(config, lambda: Server(config))
    return made if isinstance(made, int) else made.run()


def wants_workers(config: Config) -> bool:
    """Tell whether a supervisor is needed."""
    return config.workers > 1 or config.max_worker_age > 0 or config.max_worker_memory > 0


def check(config: Config) -> int:
    """Do all that serve does before it listens; return the exit code it would end with."""

    def make() -> Server:
        if config.reload:
            from .reload import watched_places

            watched_places(config)
        if config.reload or wants_workers(config):
            check_platform(config, can_fork(config))
        return Server(config)

    prepared = prepare(config, make)
    if not isinstance(prepared, Server):
        return prepared
    prepared.close()
    try:
        check_places(config)
    except ConfigError as exc:
        error_logger.error("%s", exc)
        return exc.exit_code
    error_logger.info("the configuration is good, and the app can be imported")
    return 0
