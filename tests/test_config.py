"""Where options come from, which source wins, and what a wrong value is told."""

from __future__ import annotations

import configparser
import http
import io
import json
import logging
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from selectserve.config import Config, all_options, environment_values
from selectserve.errors import ConfigError
from selectserve.kinds import byte_size, count, permissions, positive, seconds, truth
from selectserve.logs import load_log_config
from selectserve.sources import load_env_file, read_config_file, write_config

from .support import DEADLINE, ROOT, run_server

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python cannot read TOML")
APP = "tests.apps:app"


def printed(*arguments: str, **options) -> str:
    done = run_server(*arguments, "--print-config", **options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture(params=["json", pytest.param("toml", marks=needs_toml)])
def config_file(request, tmp_path):
    """``config_file({"port": 1})`` writes a file in the form of the test and returns its path."""

    def write(options: dict) -> str:
        path = tmp_path / f"selectserve.{request.param}"
        if request.param == "json":
            path.write_text(json.dumps(options))
        else:
            path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in options.items()))
        return str(path)

    return write


def test_values_of_a_file(config_file):
    given = {
        "app": APP,
        "port": 1234,
        "timeout-keep-alive": 7,  # as on the command line
        "timeout_write": 2.5,
        "access_log": False,
        "use_colors": True,
        "ws_per_message_deflate": False,
        "header": ["X-A: 1", "X-B:2"],
        "bind": "127.0.0.1:0",  # one alone
        "ssl_certfile": ["a.pem", "b.pem"],
        "uds_permissions": "600",
        "log_config": "log.json",
        "backlog": "100",  # a text is read as on the command line
        "ssl_version": "TLSv1.3",
    }
    assert read_config_file(config_file(given)) == {
        "app": APP,
        "port": 1234,
        "timeout_keep_alive": 7.0,
        "timeout_write": 2.5,
        "access_log": False,
        "use_colors": True,
        "ws_per_message_deflate": False,
        "header": [("X-A", "1"), ("X-B", "2")],
        "bind": ["127.0.0.1:0"],
        "ssl_certfile": ["a.pem", "b.pem"],
        "uds_permissions": 0o600,
        "log_config": "log.json",
        "backlog": 100,
        "ssl_version": "TLSv1.3",
    }


def test_tables_and_pairs(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"log_config": {"version": 1}, "header": [["X-A", "1"]]}))
    assert read_config_file(str(path)) == {"log_config": {"version": 1}, "header": [("X-A", "1")]}


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"prot": 1}, r"unknown option 'prot': did you mean port\?"),
        ({"zzzzzz": 1}, "unknown option 'zzzzzz': see"),
        ({"port": "x"}, "port: 'x' is not valid: a whole number"),
        ({"port": -1}, "port: '-1' is not valid"),
        ({"port": 1.5}, "port: '1.5' is not valid"),
        ({"port": [1]}, "port: a text, number or boolean, not list"),
        ({"port": True}, "port: 'true' is not valid"),
        ({"access_log": "maybe"}, "access_log: 'maybe' is neither true nor false"),
        ({"lifespan": "perhaps"}, "lifespan: 'perhaps' is not one of auto, on, off"),
        ({"header": ["no colon"]}, "header: 'no colon' is not valid"),
        ({"uds_permissions": "999"}, "uds_permissions: '999' is not valid"),
        ({"uds_permissions": 660}, 'uds_permissions: 660 is 1224 in octal: give "660"$'),
        ({"ssl_version": 1.2}, r"ssl_version \(TLSv1.2\|TLSv1.3\): a text in quotes, not float$"),
        ({"ssl_context_factory": "x"}, "unknown option 'ssl_context_factory'"),
    ],
)
def test_wrong_values_of_a_file(config_file, options, reason):
    path = config_file(options)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_config_file(path)
    assert path in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("missing.json", None, "No such file"),
        ("a.json", b"{", "char 1"),
        ("a.json", b"[1]", "not a table"),
        ("a.json", b"\xff", "decode"),
        pytest.param("a.toml", b"port 1", "line 1", marks=needs_toml),
        pytest.param("a.toml", b"\xff", "decode", marks=needs_toml),
    ],
)
def test_files_that_are_none(tmp_path, name, data, reason):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    done = run_server("--config", str(tmp_path / name))
    assert done.returncode == 2 and re.search(f"--config .*{name}.*{reason}", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_python_without_toml(tmp_path, monkeypatch):
    from selectserve import sources

    monkeypatch.setattr(sources, "find_tomllib", lambda: None)
    (tmp_path / "a.toml").write_text("port = 1")
    with pytest.raises(ConfigError, match="cannot read TOML .*: write it as JSON"):
        read_config_file(str(tmp_path / "a.toml"))


# -- who wins --------------------------------------------------------------------------------------


def test_the_order_of_sources(tmp_path):
    """The command line, then the environment, then its file, then the config file."""
    config, env_file = tmp_path / "c.json", tmp_path / "env"
    config.write_text(
        json.dumps({"app": "a:file", "port": 1, "backlog": 1, "root_path": "/f", "fd": 1,
                    "env_file": str(env_file)})
    )  # fmt: skip
    env_file.write_text("SELECTSERVE_BACKLOG=2\nSELECTSERVE_ROOT_PATH=/e\nSELECTSERVE_PORT=2\n")
    environ = {**os.environ, "SELECTSERVE_ROOT_PATH": "/v", "SELECTSERVE_PORT": "3"}
    text = printed("--config", str(config), "--port", "4", env=environ)
    assert 'app = "a:file"\n' in text
    assert "port = 4  # from the command line\n" in text
    assert 'root_path = "/v"  # from the environment\n' in text
    assert "backlog = 2  # from the environment\n" in text
    assert f"fd = 1  # {config}\n" in text
    assert '# lifespan = "auto"\n' in text
    environ["SELECTSERVE_CONFIG"] = str(config)
    assert printed("--port", "4", env=environ) == text
    environ["SELECTSERVE_APP"] = "a:variable"
    assert 'app = "a:variable"\n' in printed(env=environ)
    assert 'app = "a:line"\n' in printed("a:line", env=environ)


@needs_toml
def test_what_is_printed_can_be_read(tmp_path):
    arguments = [
        "a:b", "--port", "9", "--header", 'X-A: "q" \\', "--no-access-log", "--bind", "unix:/x y",
        "--uds-permissions", "600", "--timeout-write", "0.5", "--ssl-ciphers", "é", "--factory",
        "--root-path", "/\U0001f600\x7f",  # JSON's escapes would be none of TOML's
    ]  # fmt: skip
    text = printed(*arguments)
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    again = printed("--config", str(path))
    cut = re.compile(r"  # (from the command line|/.*)$", re.MULTILINE)
    assert cut.sub("", again) == cut.sub("", text)
    values = read_config_file(str(path))
    assert values["header"] == [("X-A", '"q" \\')] and values["uds_permissions"] == 0o600
    assert values["root_path"] == "/\U0001f600\x7f"
    assert len(values) == 10


def test_every_option_is_printed_and_no_password():
    text = printed("--ssl-keyfile-password", "sesame", "--inspect-token", "sesame")
    assert "sesame" not in text
    for option in all_options():
        assert option.code_only or re.search(rf"^(# )?{option.name} =", text, re.MULTILINE)


@needs_toml
def test_every_default_is_printed_as_it_is_read():
    import tomllib

    lines = write_config(Config(), {}).split("\n")
    for line in lines:
        name, equals, value = line.removeprefix("# ").partition(" = ")
        if equals:
            parsed = tomllib.loads(f"value = {value}")["value"]
            default = getattr(Config, name).default
            assert parsed == (f"{default:o}" if name == "uds_permissions" else default)


# -- the env file ----------------------------------------------------------------------------------


def test_env_file(tmp_path):
    path = tmp_path / "env"
    path.write_bytes(
        b"\xef\xbb\xbf# comment\n\n"
        b"A=1\n  B = two words  \nexport C='single # \"'\n"
        b'D="a\\nb\\"\\\\" # comment\nE=\nF=x # comment\nG=x#y\r\nH=\'\'\nI="multi ${X}"\nSET=no\n'
        b"J=caf\xc3\xa9\nK=a=b\n"
    )
    environ = {"SET": "yes"}
    load_env_file(str(path), environ)
    assert environ == {
        "SET": "yes", "A": "1", "B": "two words", "C": 'single # "', "D": 'a\nb"\\', "E": "",
        "F": "x", "G": "x#y", "H": "", "I": "multi ${X}", "J": "café", "K": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"A=1\nnonsense\n", "line 2: not NAME=value: 'nonsense'"),
        (b"1A=1\n", "line 1"),
        (b"A='open\n", None),
        (b"\xff=1\n", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_env_files_that_are_none(tmp_path, data, reason):
    path = tmp_path / "env"
    if data is not None:
        path.write_bytes(data)
    if reason is None:  # a quote that is not closed is part of the value
        environ: dict[str, str] = {}
        load_env_file(str(path), environ)
        assert environ == {"A": "'open"}
        return
    done = run_server("--env-file", str(path))
    assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr


def test_the_app_sees_the_env_file(tmp_path):
    (tmp_path / "env").write_text("THE_ANSWER=42\n")
    (tmp_path / "an_app.py").write_text(
        "import os\nassert os.environ['THE_ANSWER'] == '42'\nasync def app(s, r, send): pass\n"
    )
    path = str(tmp_path / "env")
    done = run_server("an_app:app", "--env-file", path, "--check", "--app-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr


# -- check -----------------------------------------------------------------------------------------


def test_check_of_what_is_good(tmp_path):
    done = run_server(APP, "--check", "--bind", f"unix:{tmp_path}/s", "--bind", "localhost:0")
    assert done.returncode == 0 and "configuration is good" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "arguments, code, reason",
    [
        (("no.such.module:app",), 1, "cannot import app module"),
        (("tests.apps:nope",), 1, "no attribute 'nope'"),
        ((APP, "--ssl-certfile", "missing.pem"), 1, "missing.pem: No such file"),
        ((APP, "--ssl-keyfile", "missing.pem"), 2, "give --ssl-certfile"),
        ((APP, "--ssl-certfile", "a", "--ssl-certfile", "b", "--ssl-keyfile", "k"), 2, "one --ssl"),
        ((APP, "--bind", "nonsense"), 2, "--bind 'nonsense'"),
        ((APP, "--uds", "/no/such/dir/s"), 3, "no such directory"),
        ((APP, "--host", "no.such.invalid"), 3, "cannot resolve"),
        ((APP, "--forwarded-allow-ips", "x"), 2, "--forwarded-allow-ips"),
        ((APP, "--access-log-format", "%(x)s"), 2, "no token"),
        ((APP, "--log-config", "missing.json"), 1, "--log-config missing.json"),
        ((APP, "--root-path", "x"), 2, "must begin with /"),
        ((APP, "--wsgi-workers", "0"), 2, "1 or more"),
        ((APP, "--reload", "--reload-dir", "missing"), 2, "--reload-dir missing: no such"),
    ],
)
def test_check_of_what_is_not(arguments, code, reason):
    done = run_server(*arguments, "--check")
    assert done.returncode == code and reason in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


LACKING = """
import functools, os, socket, sys
from selectserve.cli import main
{lack}
sys.exit(main(["tests.apps:app", "--lifespan", "off", *{options!r}]))
"""
NO_FORK = "--preload and --worker-start fork need a system with os.fork"
NO_UNIX = (  # Python's own socketpair() has to be told what to do without
    "socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX); del socket.AF_UNIX"
)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "lack, options, code, sentence",
    [
        ("del os.fork", ["--workers", "2", "--preload"], 2, NO_FORK),
        ("del os.fork", ["--workers", "2", "--worker-start", "fork"], 2, NO_FORK),
        ("os.sysconf = int", ["--max-worker-memory", "1G"], 2,
         "--max-worker-memory: this system has no /proc to ask"),
        ("del socket.SO_REUSEPORT", ["--reuse-port"], 3,
         "--reuse-port: this system has no SO_REUSEPORT; leave it out"),
        (NO_UNIX, ["--uds", "socket"], 3,
         "this system has no unix sockets: use --host and --port"),
        ("sys.platform = 'darwin'", ["--uds", "@name"], 3,
         "unix:@name: abstract names are Linux's alone: use a path"),
    ],
)  # fmt: skip
@pytest.mark.skipif(os.name != "posix", reason="a POSIX system is made to lack things here")
def test_what_a_system_lacks_is_said_in_one_sentence(lack, options, code, sentence, check):
    program = LACKING.format(lack=lack, options=[*options, *(["--check"] if check else [])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, f"ERROR:    {sentence}\n")


# -- from Python -----------------------------------------------------------------------------------


def test_values_of_a_program():
    config = Config(
        None, ssl_certfile=Path("a.pem"), ssl_keyfile="k.pem", uds=Path("/s"), bind="h:1",
        port=None, host=None, log_config=None, env_file=Path(".env"),
    )  # fmt: skip
    assert config.ssl_certfile == ["a.pem"] and config.ssl_keyfile == ["k.pem"]
    assert config.uds == "/s" and config.bind == ["h:1"] and config.env_file == ".env"
    assert config.port == 8000 and config.host == "127.0.0.1"
    assert "port" not in config.values


def test_text_that_a_program_gives_is_read_as_on_the_command_line():
    """As from os.environ: else it would fail where it is used, at the end of a drain, or never."""
    config = Config(
        port="9", timeout_graceful_shutdown="2.5", access_log="false", header="X-A: b",
        uds_permissions="600", max_worker_memory="1K",
    )  # fmt: skip
    assert config.port == 9 and config.timeout_graceful_shutdown == 2.5
    assert config.access_log is False and config.header == [("X-A", "b")]
    assert config.uds_permissions == 0o600 and config.max_worker_memory == 1024
    for wrong in ({"port": "x"}, {"timeout_body": "-1"}, {"preload": "maybe"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Config(**wrong)


def test_lists_in_the_environment():
    values = environment_values({"SELECTSERVE_BIND": "a:1, unix:/b", "SELECTSERVE_REUSE_PORT": "1"})
    assert values == {"bind": ["a:1", "unix:/b"], "reuse_port": True}


# What no option takes from a program, and what those of a kind do not take.
NEVER = (b"x", [[]], {1: 2}, object, object(), 1 + 2j, [b"x"], ((),))
WRONG = {
    count: (-1, True, 1.5, float("inf"), "x", "", "-1", "1.5", [1]),
    positive: (-1, 0, True, 1.5, "0", "x"),
    seconds: (-1, -0.5, True, float("inf"), float("-inf"), float("nan"), 1e9, "x", "nan", [1.0]),
    byte_size: (-1, True, 1.5, "x", "5X"),
    permissions: (-1, True, 0o1000, 6.0, "9", "-1"),
    truth: (1, 0, 1.0, "maybe"),
}
WRONG_HERE = {
    "port": (65536, "65536"),
    "header": ("no colon", ("a", "b", "c"), [("a",)], [("a", b"b")], [("a", "b\nc")],
               [("a b", "c")], [("a", "\u2603")], {"a": "b"}),
    "log_level": ("loud", 7, True, 1.5),
    "log_config": (True, ["x"]),
    "ssl_context_factory": ("x", 5),
}  # fmt: skip


def wrong_values(option):
    """Every value that the option must refuse."""
    values = list(NEVER)
    if option.code_only or option.any_type:
        values = [value for value in NEVER if not callable(value) and type(value) is not dict]
    if option.flag:
        values += (2, -1, 1.5, float("nan"), "maybe", [True])
    elif option.choices:
        values += (True, 1.5, float("nan"), "perhaps", ["auto"])
    elif option.kind is None and not option.code_only:
        values += (True, 1.5, float("nan"))
    values += (*WRONG.get(option.kind, ()), *WRONG_HERE.get(option.name, ()))
    return [value for value in values if option.name != "fd" or value != -1]  # its default


@pytest.mark.parametrize("option", all_options(), ids=lambda option: option.name)
def test_a_wrong_value_of_a_program_is_told_as_text_is(option):
    """It failed where it was used: while serving, at the end of a drain, or never."""
    for value in wrong_values(option):
        try:
            Config(**{option.name: value})
        except ConfigError as exc:
            assert re.match(rf"(--)?{option.name}\b.+", str(exc)) and exc.exit_code == 2
        else:
            pytest.fail(f"{option.name}={value!r} was taken")


@pytest.mark.parametrize("option", all_options(), ids=lambda option: option.name)
def test_every_default_may_be_given(option):
    config = Config(**{option.name: option.default})
    assert getattr(config, option.name) == option.default


def test_right_values_of_a_program():
    config = Config(
        log_level=logging.WARNING, timeout_body=7, access_log=0, uds_permissions=0o600, inspect=0,
        bind=("a:1", "b:2"), header=[["X-A", "1"], "X-B: 2"], forwarded_allow_ips=["::1", "unix:"],
        ssl_cert_reqs=ssl.CERT_REQUIRED, ssl_version=ssl.PROTOCOL_TLS_SERVER, lifespan="OFF",
        max_worker_memory=5, backlog=http.HTTPStatus.CONTINUE,
    )  # fmt: skip
    assert config.log_level == "warning" and config.timeout_body == 7.0
    assert config.access_log is False and config.uds_permissions == 0o600
    assert config.bind == ["a:1", "b:2"] and config.header == [("X-A", "1"), ("X-B", "2")]
    assert config.forwarded_allow_ips == "::1,unix:" and config.lifespan == "off"
    assert config.ssl_cert_reqs == "2" and config.ssl_version == "17" and config.backlog == 100


# -- from a call of uvicorn.run() ------------------------------------------------------------------

UVICORN = {  # the keywords of uvicorn 0.54's run() and Config, and their defaults
    "host": "127.0.0.1", "port": 8000, "uds": None, "fd": None, "loop": "auto", "http": "auto",
    "http2": False, "ws": "auto", "ws_max_size": 16777216, "ws_max_queue": 32,
    "ws_ping_interval": 20.0, "ws_ping_timeout": 20.0, "ws_per_message_deflate": True,
    "lifespan": "auto", "interface": "auto", "reload": False, "reload_dirs": None,
    "reload_includes": None, "reload_excludes": None, "reload_delay": 0.25, "workers": None,
    "env_file": None, "log_config": {"version": 1}, "log_level": None, "access_log": True,
    "proxy_headers": True, "server_header": True, "date_header": True, "forwarded_allow_ips": None,
    "root_path": "", "limit_concurrency": None, "backlog": 2048, "limit_max_requests": None,
    "limit_max_requests_jitter": 0, "timeout_keep_alive": 5, "timeout_graceful_shutdown": None,
    "timeout_worker_healthcheck": 5, "ssl_keyfile": None, "ssl_certfile": None,
    "ssl_keyfile_password": None, "ssl_version": 17, "ssl_cert_reqs": 0, "ssl_ca_certs": None,
    "ssl_ciphers": None, "ssl_context_factory": None, "headers": None, "use_colors": None,
    "app_dir": None, "factory": False, "h11_max_incomplete_event_size": None,
    "reset_contextvars": False,
}  # fmt: skip


def test_every_keyword_of_uvicorn_is_taken():
    assert Config("a:b", **UVICORN).port == 8000


def test_uvicorns_names_and_shapes():
    config = Config(
        headers=[("X-A", "1")], reload_dirs="src", reload_includes=["*.html"], reload_excludes=[],
        h11_max_incomplete_event_size=1000, ws_ping_interval=None, ws_ping_timeout=None,
        reset_contextvars=True, log_level="INFO", log_config=configparser.RawConfigParser(),
    )  # fmt: skip
    assert config.header == [("X-A", "1")] and config.reload_dir == ["src"]
    assert config.reload_include == ["*.html"] and config.reload_exclude == []
    assert config.limit_header_size == 1000 and config.log_level == "info"
    assert config.ws_ping_interval == config.ws_ping_timeout == 0
    with pytest.raises(ConfigError, match="http2: selectserve speaks"):
        Config(http2=True)
    with pytest.raises(ConfigError, match="headers: 'x' is not valid"):
        Config(headers=["x"])


@pytest.mark.parametrize("form", ["parser", "file"])
def test_a_log_config_as_uvicorn_takes_it(form):
    text = (
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nhandlers=\n"
    )
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    given = parser if form == "parser" else io.StringIO(text)
    handlers = logging.root.handlers[:]
    try:
        load_log_config(Config(log_config=given).log_config)
        assert logging.root.handlers == []
    finally:
        logging.root.handlers[:] = handlers
