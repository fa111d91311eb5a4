"""The inspector: its door, its numbers, its pace; and the page itself in a real Chromium."""

from __future__ import annotations

import json
import re
import signal

import pytest

from selectserve.errors import ConfigError
from selectserve.inspector import inspector_page, parse_place
from selectserve.observer import Observer, StoppableClock
from selectserve.reactor import Reactor

from .browser import Browser, needs_chromium
from .support import RawClient, run_server
from .test_websocket_e2e import TEXT, WebSocketClient, encode

APP = "tests.apps_trace:app"
TOKEN = "open-sesame"


class Inspected:
    """A server that is inspected, and the way to its inspector."""

    def __init__(self, server):
        self.server = server
        self.url = server.wait_for_log(r"the inspector is at (http://\S+)")[1]
        host, port = re.match(r"http://([\d.]+):(\d+)/", self.url).groups()
        self.address = host, int(port)

    def get(self, target, *headers):
        with RawClient(self.address) as client:
            return client.get(target, *headers)

    def connections(self):
        return json.loads(self.get(f"/connections?token={TOKEN}").body)["connections"]

    def metrics(self):
        text = self.get(f"/metrics?token={TOKEN}").body.decode()
        lines = [line.rpartition(" ") for line in text.split("\n") if line and line[0] != "#"]
        return {name: float(value) for name, _, value in lines}

    def watch(self):
        return Watcher(self.address)


class Watcher(WebSocketClient):
    """What the page does: look at pictures, and give orders."""

    def __init__(self, address):
        super().__init__(address)
        assert self.shake(f"/live?token={TOKEN}").status == 101

    def picture(self):
        opcode, payload, _ = self.read_frame()
        assert opcode == TEXT
        return json.loads(payload)

    def order(self, **what):
        self.send(encode(TEXT, json.dumps(what).encode()))

    def until(self, condition):
        """Return the first picture in which something is true; each comes in its time."""
        for _ in range(100):
            picture = self.picture()
            if condition(picture):
                return picture
        raise AssertionError(f"still not true: {picture}")


@pytest.fixture
def inspected(serve):
    return Inspected(serve(APP, "--inspect", "0", "--inspect-token", TOKEN))


def hang(server):
    client = server.connect()
    client.request("GET", "/hang?\x7e")
    return client


# -- the door ---------------------------------------------------------------------------------


def test_it_opens_with_the_token_only(inspected):
    for target in ("/", "/metrics", "/connections", "/?token=", "/?token=wrong", "/?token=open"):
        response = inspected.get(target)
        assert response.status == 403 and b"link" in response.body
    with WebSocketClient(inspected.address) as client:
        assert client.shake("/live?token=wrong").status == 403
    assert inspected.get("/metrics", f"Authorization: Bearer {TOKEN}").status == 200
    assert inspected.get(f"/elsewhere?token={TOKEN}").status == 404


def test_the_page_asks_for_nothing_from_elsewhere(inspected):
    response = inspected.get(f"/?token={TOKEN}")
    assert response.status == 200
    assert response.get("content-security-policy").startswith(b"default-src 'none'")
    assert response.get("cache-control") == b"no-store"
    text = response.body.decode()
    assert text == inspector_page()
    for link in re.findall(r"(?:src|href)=.?([^\s\"'>]+)", text):
        assert link.startswith("data:"), link
    assert "innerHTML" not in text, "paths are what clients make them"


def test_each_start_has_a_token_of_its_own(serve):
    links = [Inspected(serve(APP, "--inspect", "0")).url for _ in range(2)]
    tokens = [link.partition("token=")[2] for link in links]
    assert all(re.fullmatch(r"[0-9a-f]{24}", token) for token in tokens)
    assert tokens[0] != tokens[1]
    assert all(link.startswith("http://127.0.0.1:") for link in links)


def test_other_addresses_are_a_decision(serve):
    server = serve(APP, "--inspect", "0.0.0.0:0")
    server.wait_for_log("WARNING.*can be reached from elsewhere")


def test_places():
    assert parse_place("8001") == ("127.0.0.1", 8001)
    assert parse_place("[::1]:80") == ("::1", 80)
    for text in ("", "x", "unix:/x", "1:2:3", "99999", "fd://3"):
        with pytest.raises(ConfigError, match="HOST"):
            parse_place(text)
    wrong = run_server(APP, "--inspect", "8001", "--workers", "2")
    assert wrong.returncode == 2 and "--workers 1" in wrong.stderr


# -- the numbers ------------------------------------------------------------------------------


def test_connections(inspected):
    client = hang(inspected.server)
    with client:
        with WebSocketClient(inspected.server.address) as talker:
            assert talker.shake("/talk").status == 101
            facts = {}
            while len(facts) < 2 or facts["app"]["parked"] is None:
                facts = {one["stage"]: one for one in inspected.connections()}
        hanging, talking = facts["app"], facts["socket"]
        assert hanging["request"] == "GET /hang?~"
        assert hanging["parked"]["waits"] == "Event.wait"
        assert re.fullmatch(r"at apps_trace.py:\d+ in hang", hanging["parked"]["place"])
        assert hanging["parked"]["text"] == "await waiting.wait()  # for ever"
        assert hanging["parser"] == "read_idle" and hanging["deadline"] is None
        assert talking["parser"] == "read_frame" and talking["request"] == "WS /talk"


def test_metrics_are_prometheus(inspected):
    with inspected.server.connect() as client:
        for target in ("/", "/", "/sleep", "/raise"):
            client.get(target)
    text = inspected.get(f"/metrics?token={TOKEN}").body.decode()
    name = r"selectserve_[a-z_]+"
    comment = rf"# HELP {name} .+|# TYPE {name} (counter|gauge|histogram)"
    sample = rf'{name}({{\w+="[^"]+"}})? [\d.e-]+'
    for line in text.rstrip("\n").split("\n"):
        assert re.fullmatch(rf"{comment}|{sample}", line), line
    numbers = inspected.metrics()
    assert numbers["selectserve_requests_total"] == 4
    assert numbers['selectserve_answers_total{status="2xx"}'] == 3
    assert numbers['selectserve_app_seconds_bucket{le="+Inf"}'] == 4
    assert numbers["selectserve_app_seconds_count"] == 4
    assert numbers["selectserve_app_seconds_sum"] >= 0.01
    assert numbers['selectserve_app_seconds_bucket{le="0.005"}'] <= 3
    assert numbers['selectserve_connections{stage="app"}'] == 0


def test_sigusr1_prints_the_table(serve):
    server = serve(APP)
    with hang(server):
        with server.connect() as other:
            other.get("/")
        server.send_signal(signal.SIGUSR1)
        server.wait_for_log(r"INFO: +[12] connections, 1 requests in flight, 2 begun in all")
        server.wait_for_log(
            r"#1 +127.0.0.1:\d+ +app +0 to write  GET /hang\?~ for \d+\.\d s,"
            r" waits for Event.wait at apps_trace.py:\d+ in hang"
        )


# -- the pace ---------------------------------------------------------------------------------


def test_a_turn_is_told_by_its_phases(inspected):
    with inspected.watch() as watcher, inspected.server.connect() as client:
        watcher.picture()
        client.get("/sleep")
        client.get("/")
        seen = {}
        while "close" not in seen and seen.get("done", 0) < 2:
            for moment in watcher.picture()["moments"]:
                seen[moment[3]] = seen.get(moment[3], 0) + 1
        assert {"ready", "read", "event", "task", "park", "step", "send", "flush"} <= set(seen)
        picture = watcher.until(lambda one: one["turn_count"])
        assert set(picture["seconds"]) == {"wait", "handlers", "timers", "tasks", "flush"}
        assert picture["seconds"]["wait"] > 0 and picture["seconds"]["flush"] > 0


def test_paused_it_stands_still_and_steps(inspected):
    with inspected.watch() as watcher, inspected.server.connect() as client:
        client.get("/")
        watcher.order(pace="paused")
        stood = watcher.until(lambda one: one["pace"] == "paused")
        client.request("GET", "/")
        ahead = watcher.until(lambda one: one["waiting"])
        assert ahead["waiting"][0].startswith("ready: read of Transport #1")
        assert ahead["requests"] == stood["requests"] == 1
        assert ahead["clock"] == stood["clock"], "time stands still, too"
        assert watcher.picture()["now"] > ahead["now"]
        assert inspected.metrics()["selectserve_requests_total"] == 1, "and it still answers"
        watcher.order(step=1)
        stepped = watcher.until(lambda one: one["requests"] == 2)
        assert stepped["pace"] == "paused"
        assert client.read_response().body == b"hello"
        watcher.order(pace="run")
        assert client.get("/").body == b"hello"


def test_a_pause_ends_with_whoever_asked_for_it(inspected):
    with inspected.watch() as watcher, inspected.server.connect() as client:
        watcher.order(pace="paused")
        watcher.until(lambda one: one["pace"] == "paused")
        client.request("GET", "/")
        watcher.close()
        assert client.read_response().body == b"hello"


def test_a_paused_server_can_be_stopped(inspected):
    with inspected.watch() as watcher:
        watcher.order(pace="paused")
        watcher.until(lambda one: one["pace"] == "paused")
        assert inspected.server.stop() == 0


def test_slow_motion(inspected):
    with inspected.watch() as watcher, inspected.server.connect() as client:
        watcher.order(pace="slow", delay=0.05)
        watcher.until(lambda one: one["pace"] == "slow" and one["delay"] == 0.05)
        assert client.get("/sleep").body == b"slept"


@pytest.mark.parametrize("nonsense", [b"", b"[]", b"1", b'{"delay": "x"}', b"{", b'{"follow": []}'])
def test_orders_that_are_none_are_ignored(inspected, nonsense):
    with inspected.watch() as watcher:
        watcher.send(encode(TEXT, nonsense))
        assert watcher.picture()["pace"] == watcher.picture()["pace"] == "run"


@pytest.mark.parametrize("app, loop", [("tests.apps_aio:app", "asyncio"), (APP, "native")])
def test_it_works_however_the_app_is_stepped(serve, app, loop):
    inspected = Inspected(serve(app, "--inspect", "0", "--inspect-token", TOKEN, "--loop", loop))
    with inspected.watch() as watcher, inspected.server.connect() as client:
        assert client.get("/sleep").status == 200
        assert watcher.until(lambda one: one["requests"])["stepper"] == loop


def test_a_slow_step_is_told(serve):
    server = serve(APP, "--inspect", "0", "--inspect-token", TOKEN)
    inspected = Inspected(server)
    with inspected.watch() as watcher, server.connect() as client:
        client.get("/hold")
        picture = watcher.until(lambda one: one["slow"])
        assert picture["slow"][0][1] >= 0.1
        assert picture["slow"][0][2].startswith("handlers: read of Transport #1 open")


def test_the_clock_does_not_catch_up():
    at = [10.0]
    clock = StoppableClock(lambda: at[0])
    clock.stop()
    at[0] = 25.0
    clock.stop()
    assert clock() == 10.0
    clock.go()
    clock.go()
    at[0] = 26.0
    assert clock() == 11.0


def test_without_it_there_is_nothing_of_it():
    plain, observed = Reactor(), Reactor()
    observer = Observer(observed)
    try:
        assert type(plain.ready).__name__ == "deque" and type(plain.unflushed) is list
        assert not {"tick", "patience", "fire_timers"} & set(vars(plain))
        done = []
        observed.call_soon(lambda: done.append("task"))
        observed.call_later(0.0, lambda: done.append("timer"))
        observed.tick()
        observed.tick(0.0)
        assert sorted(done) == ["task", "timer"]
        assert observer.turn_count and sum(turn.counts["tasks"] for turn in observer.turns) == 1
    finally:
        plain.close()
        observer.close()
        observed.close()


# -- the page ---------------------------------------------------------------------------------


@needs_chromium
def test_the_page_with_many_connections(serve, tmp_path):
    inspected = Inspected(serve(APP, "--inspect", "0", "--inspect-token", TOKEN))
    server = inspected.server
    crowd = [hang(server) if number % 5 == 0 else server.connect() for number in range(500)]
    try:
        with Browser() as browser:
            browser.open(inspected.url)
            browser.wait_for("document.getElementById('total').textContent === '500'")
            assert browser.evaluate("document.querySelectorAll('#marks i').length") == 500
            assert browser.evaluate("document.querySelectorAll('.lane').length") == 40
            browser.wait_for("document.body.textContent.includes('await waiting.wait()')")
            for name, width, height, dark in (
                ("light", 1440, 1000, False),
                ("dark", 1440, 1000, True),
                ("projector", 1920, 1080, False),
                ("phone", 390, 844, False),
            ):
                browser.resize(width, height, dark)
                wide = browser.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{name} scrolls sideways by {wide}"
                browser.screenshot(str(tmp_path / f"{name}.png"))
                assert (tmp_path / f"{name}.png").stat().st_size > 20_000
            assert browser.errors == []
    finally:
        for client in crowd:
            client.close()


@needs_chromium
def test_the_page_by_keyboard(inspected):
    with Browser() as browser, inspected.server.connect() as client:
        browser.open(inspected.url)
        browser.wait_for("document.getElementById('state').textContent === 'running'")
        client.get("/sleep")  # moments are kept while somebody looks
        browser.wait_for(
            "document.getElementById('moments').textContent.includes('app(GET /sleep)')"
        )
        browser.press(" ", "Space", " ")
        browser.wait_for("document.getElementById('state').textContent === 'paused'")
        # the page says so at once, and this when the server stands still
        browser.wait_for("document.getElementById('next').textContent.includes('Standing still')")
        client.request("GET", "/<img src=x onerror=alert(1)>".replace(" ", "%20"))
        browser.wait_for("document.getElementById('next').textContent.includes('Transport #1')")
        browser.press("ArrowRight")
        assert client.read_response().body == b"hello"
        browser.wait_for("document.getElementById('moments').textContent.includes('onerror')")
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        browser.press("s", "KeyS", "s")
        browser.wait_for("document.getElementById('state').textContent === 'slow motion'")
        browser.press(" ", "Space", " ")
        browser.wait_for("document.getElementById('state').textContent === 'paused'")
        browser.press(" ", "Space", " ")
        browser.wait_for("document.getElementById('state').textContent === 'running'")
        browser.press("t", "KeyT", "t")
        assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
        assert browser.errors == []


@needs_chromium
def test_the_chat_in_a_browser(serve):
    server = serve("examples.chat:app")
    with Browser() as browser:
        browser.open(f"http://127.0.0.1:{server.port}/room")
        browser.wait_for("document.body.textContent.includes('1 here')")
        browser.evaluate("text.value = 'hello, room'; form.onsubmit()")
        browser.wait_for("list.textContent.includes('hello, room')")
        assert browser.errors == []
