"""How long a process waits, at its end, for the app's threads at work; more in test_cli."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from .support import DEADLINE, ROOT


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_wait_for_threads_can_be_ended_from_its_first_moment_on(name):
    """Behind it a signal is again what it was."""
    program = f"""if True:
        import atexit, signal, sys, threading
        from selectserve import ending

        ending.LAST_TIME = 1e6
        atexit.register(lambda: print("at exit", int(signal.getsignal(signal.SIGTERM))))
        threading.Thread(target=threading.Event().wait).start()
        ending.limit_threads(set(), lambda: signal.raise_signal(signal.{name}) or 1e6)
        sys.exit(5)
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (5, f"at exit {int(signal.SIG_DFL)}\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_the_pool_of_a_program_is_no_thread_of_the_app():
    """Who waits for it has nothing to tell of the app's, which have ended."""
    program = """if True:
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from selectserve import ending

        go, done = threading.Event(), threading.Event()
        threading._register_atexit(go.set)  # those that came last are called first
        ThreadPoolExecutor(1).submit(go.wait)
        others = ending.waited_threads()
        app = threading.Thread(target=done.wait)
        app.start()
        ending.limit_threads(others, lambda: 1e6)
        done.set()
        app.join()
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
