"""Run Autobahn's fuzzing client against selectserve: ``python3 -m tests.autobahn [CASES…]``.

Opt-in, because its package needs CPython 2.7 (looked for under pyenv and on PATH) and the whole
takes some minutes. CASES are patterns of Autobahn's, all by default (``1.* 9.*``). Prints how
many cases behaved how, and each that is not OK; the exit code is 1 when a case failed.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..support import ROOT, Server

HOME = ROOT / ".venv-autobahn"
FINE = ("OK", "INFORMATIONAL", "UNIMPLEMENTED")


def find_python():
    """Return a CPython 2.7, or end with one clear line."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in sorted(pyenv.glob("versions/2.7*/bin/python")):
        return str(path)
    found = shutil.which("python2.7")
    if found is None:
        sys.exit("autobahn: no CPython 2.7 was found, under pyenv or on PATH: nothing was run")
    return found


def install(python):
    """Install the suite into ``HOME``, once."""
    if not (HOME / "autobahntestsuite").exists():
        print(f"autobahn: installing the suite with {python}", flush=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--target", str(HOME), "autobahntestsuite"],
            check=True,
        )


def run_client(python, url, cases, reports):
    """Run the fuzzing client; return its verdicts, a dict of case to behaviour."""
    specification = reports / "spec.json"
    specification.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": [{"agent": "selectserve", "url": url}],
                "cases": cases,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    program = (
        f"import site, sys; site.addsitedir({str(HOME)!r}); from autobahntestsuite import wstest; "
        f"sys.argv = ['wstest', '-m', 'fuzzingclient', '-s', {str(specification)!r}]; wstest.run()"
    )
    subprocess.run([python, "-c", program], check=True, timeout=3600)
    return json.loads((reports / "index.json").read_text())["selectserve"]


def main():
    """Serve, fuzz, and tell."""
    python = find_python()
    install(python)
    cases = sys.argv[1:] or ["*"]
    with tempfile.TemporaryDirectory() as reports, Server("tests.autobahn.echo:app") as server:
        url = f"ws://{server.host}:{server.port}"
        verdicts = run_client(python, url, cases, Path(reports))
    counts = collections.Counter(verdict["behavior"] for verdict in verdicts.values())
    closes = collections.Counter(verdict["behaviorClose"] for verdict in verdicts.values())
    for case, verdict in sorted(verdicts.items()):
        if verdict["behavior"] not in FINE or verdict["behaviorClose"] not in FINE:
            print(f"case {case}: {verdict['behavior']}, close {verdict['behaviorClose']}")
    print(f"{len(verdicts)} cases: {dict(counts)}, closing handshakes: {dict(closes)}")
    return 1 if counts["FAILED"] or closes["FAILED"] or counts["WRONG CODE"] else 0


if __name__ == "__main__":
    sys.exit(main())
