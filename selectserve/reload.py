"""reload: for developers: the server starts anew when a file of the app has changed.

A Reloader is a supervisor of one worker, which it starts anew, never twice at a time. It holds
the listening sockets itself, so that requests wait meanwhile instead of failing. What a Watcher
looks at, between two turns of the reactor, are the files below some directories and those of the
modules that the worker says it has loaded. What it saw before a worker started is what counts, so
no change is lost while one starts. An app that cannot be loaded is shown, and waited for.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch

from .config import Config
from .errors import ConfigError
from .listener import listen_on
from .logs import error_logger
from .process import Child, describe_exit
from .supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Stamp = tuple[int, int, int]

INCLUDED = ("*.py",)
EXCLUDED = (".*", "*.py[cod]", "*~", "#*#", "*.sw?")
PRUNED = frozenset(("__pycache__", "node_modules"))
RELOAD_PATIENCE = 1.0  # seconds for requests to end; a stream would hold the new code up
PART_OF_TIME = 20  # a look at many files happens so seldom that it takes a twentieth of the time
FILES_TO_NAME = 3


class Watcher:
    """Look at files below ``places``, and at others that were ``add``-ed: which have changed?"""

    def __init__(
        self, places: Iterable[str], included: Iterable[str] = (), excluded: Iterable[str] = ()
    ) -> None:
        self.places = list(map(os.path.abspath, places))
        self.included = [*INCLUDED, *included]
        self.excluded = [*EXCLUDED, *excluded]
        self.others: set[str] = set()
        self.seen: dict[str, Stamp] = {}
        self.look()

    def look(self) -> list[str]:
        """Return the files that were changed, added or removed since the last look."""
        files = self.others.union(*map(self.walk, self.places))
        found = {path: stamp for path in files if (stamp := file_stamp(path))}
        seen, self.seen = self.seen, found
        return sorted({path for path, _ in found.items() ^ seen.items()})

    def walk(self, place: str) -> list[str]:
        """Return the files below ``place`` that are of interest."""
        found: list[str] = []
        folders = [place]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if self.is_of_interest(entry):
                                folders.append(entry.path)
                        elif self.matches(entry.path, self.included):
                            if not self.matches(entry.path, self.excluded):
                                found.append(entry.path)
            except OSError:
                pass  # removed just now, or not ours to read
        return found

    def is_of_interest(self, folder: os.DirEntry[str]) -> bool:
        """Tell a folder of the app from a virtual environment, a cache and what is excluded."""
        return not (
            folder.name in PRUNED
            or self.matches(folder.path, self.excluded)
            or os.path.exists(os.path.join(folder.path, "pyvenv.cfg"))
        )

    def matches(self, path: str, patterns: list[str]) -> bool:
        """Tell whether the name, or the path as seen from a place, fits one of the patterns."""
        name = os.path.basename(path)
        for pattern in patterns:
            if fnmatch(name, pattern):
                return True
            if "/" in pattern:
                if any(fnmatch(path, os.path.join(place, pattern)) for place in self.places):
                    return True
        return False

    def add(self, files: Iterable[str], since: int) -> list[str]:
        """Watch ``files`` too; return those that were changed after the moment ``since``."""
        changed = []
        for path in set(files).difference(self.seen):
            self.others.add(path)
            stamp = file_stamp(path)
            if stamp is not None:
                self.seen[path] = stamp
                if stamp[0] > since:
                    changed.append(path)
        return sorted(changed)


def file_stamp(path: str) -> Stamp | None:
    """Return what changes when a file is written or replaced, None when there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def watched_places(config: Config) -> list[str]:
    """Return the directories to watch; raise ConfigError for one that does not exist."""
    places = config.reload_dir or [config.app_dir]
    for place in places:
        if not os.path.isdir(place):
            raise ConfigError(f"--reload-dir {place}: no such directory", 2)
    return places


class Reloader(Supervisor):
    """Keep one worker, and start it anew whenever a file has changed."""

    def __init__(self, config: Config) -> None:
        if config.workers > 1:
            error_logger.warning("--reload: one worker instead of %d", config.workers)
        places = watched_places(config)
        super().__init__(config)
        self.wanted = 1
        self.watcher = Watcher(places, config.reload_include, config.reload_exclude)
        self.waiting = False  # the app cannot be loaded: only a change can help
        try:
            for sock in self.sockets:
                listen_on(sock, config.backlog)
        except ConfigError:
            self.release_sockets()
            raise

    def describe(self) -> str:
        """Say in a word what we are."""
        return f"reloading when {', '.join(self.watcher.included)} change"

    def balance(self) -> None:
        """Start a worker when there is none, and reason to hope."""
        if self.stops or all(child.state != "leaving" for child in self.children):
            if self.stops or not self.waiting:
                super().balance()

    def run(self) -> int:
        """Supervise until stopped; return the exit code."""
        self.reactor.call_later(self.config.reload_delay, self.look)
        return super().run()

    def look(self) -> None:
        """Look whether something has changed, and again after a while."""
        began = self.reactor.clock()
        changed = self.watcher.look()
        now = self.reactor.clock()
        self.reactor.call_later(
            max(self.config.reload_delay, PART_OF_TIME * (now - began)), self.look
        )
        if changed and not self.stops:
            self.on_change(changed)

    def on_change(self, files: list[str]) -> None:
        """Start anew."""
        names = ", ".join(map(os.path.relpath, files[:FILES_TO_NAME]))
        more = len(files) - FILES_TO_NAME
        error_logger.info(
            "%s%s changed: starting anew", names, f" and {more} more" if more > 0 else ""
        )
        self.restart()

    def restart(self) -> None:
        """End the worker; its end, or now if there is none, is the beginning of the next."""
        self.waiting = False
        self.start_at = 0.0
        for child in self.children:
            if child.state != "leaving":
                self.leave(child, "stop")
                child.expect(self.reactor.clock() + RELOAD_PATIENCE)
        self.balance()

    def call_heir(self) -> None:
        """A new version of ourselves is not what a developer waits for."""
        self.restart()

    def on_deadline(self, child: Child) -> None:
        """The worker does not end by itself: it is no time to be patient."""
        if child.state == "leaving" and not child.silent and not self.stops:
            child.silent = True
            self.hurry(child)
        else:
            super().on_deadline(child)

    def on_failed_start(self, child: Child, code: int) -> None:
        """The app cannot be loaded, which its author has seen now."""
        error_logger.error("the app %s: waiting for a change", describe_exit(code))
        self.waiting = True

    def on_files(self, child: Child, files: list[str]) -> None:
        """Watch the modules that the worker has loaded; they may have changed while it did."""
        changed = self.watcher.add(files, child.slate.born)
        if changed and child.state != "leaving":
            self.on_change(changed)
