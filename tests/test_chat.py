"""The chat example in a real browser: its page, Chromium's own WebSocket, and our server."""

from __future__ import annotations

import pytest

from .browser import Browser, needs_chromium


def say(browser, name, words):
    """Type a name and a message, and press the button."""
    browser.evaluate(
        f"form.elements.name.value = {name!r}; form.elements.text.value = {words!r};"
        " form.querySelector('button').click()"
    )


def lines(browser):
    """Return the class and the text of each line that the page shows."""
    return browser.evaluate("[...list.children].map(item => [item.className, item.innerText])")


def wait_for_line(browser, words):
    browser.wait_for(f"list.innerText.includes({words!r})")


@pytest.fixture
def pages(serve):
    """Two pages, of two browsers, in the same room; and their server."""
    server = serve("examples.chat:app", "--timeout-graceful-shutdown", "4")
    url = f"http://127.0.0.1:{server.port}/kitchen"
    with Browser() as ann, Browser(width=390, height=844) as bob:
        ann.open(url)
        ann.wait_for("state.textContent === '1 here'")
        bob.open(url)
        for browser in ann, bob:
            browser.wait_for("state.textContent === '2 here'")
        yield ann, bob, server


@needs_chromium
def test_two_pages_chat_and_see_each_other_leave(pages):
    ann, bob, _server = pages
    assert ann.evaluate("document.querySelector('h1').textContent") == "Chat /kitchen"
    say(ann, "Ann", "hello, Bob <b>& all</b> \u2603")
    wait_for_line(bob, "hello, Bob <b>& all</b> \u2603")
    say(bob, "Bob", "hello, Ann")
    for browser in ann, bob:  # to both it comes from the server, each in its time
        wait_for_line(browser, "hello, Bob")
        wait_for_line(browser, "hello, Ann")
    assert [shown for kind, shown in lines(ann) if kind == "mine"] == [
        "Ann\nhello, Bob <b>& all</b> \u2603"
    ]
    assert ["", "Bob\nhello, Ann"] in lines(ann)
    assert ["mine", "Bob\nhello, Ann"] in lines(bob)
    assert ann.evaluate("document.querySelectorAll('li b').length") == 2  # the names only
    bob.call("Page.close")  # to go to another page would keep this one, and its socket, for "back"
    wait_for_line(ann, "Bob left")
    ann.wait_for("state.textContent === '1 here'")
    assert ann.errors == bob.errors == []


@needs_chromium
def test_the_page_sees_how_its_websocket_was_closed(pages):
    ann, bob, server = pages
    watch = (
        "window.ending = null; socket.addEventListener('close',"
        " event => { ending = [event.code, event.wasClean] })"
    )
    ann.evaluate(watch)
    ann.evaluate("socket.close(4000, 'bye')")  # the browser begins, and we answer
    assert ann.wait_for("ending") == [4000, True]
    bob.evaluate(watch)
    server.process.terminate()  # and the other way round
    assert bob.wait_for("ending") == [1012, True]
    bob.wait_for("state.textContent === 'no connection'")
