"""importer: from what the user named to a callable that makes one coroutine a request.

``APP`` is ``package.module:attribute`` (dots allowed in the attribute) or the app itself. Whatever
its shape, ASGI 3, ASGI 2 or a factory, the rooms below get one: called with scope, receive and
send it returns a coroutine. A mistake is told in one line; what the user's own code raises is
shown with the user's own traceback.
"""

from __future__ import annotations

import importlib
import os
import sys

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .asgi import Receive, Scope, Send
    from .service import StepApp

COROUTINE_FUNCTION = 0x80  # inspect.CO_COROUTINE; importing inspect would cost 9 ms


def load_app(target: Any, app_dir: str = ".", factory: bool = False) -> Any:
    """Return the app that ``target`` names; raise ConfigError (exit code 1)."""
    if isinstance(target, str):
        module_name, colon, attribute = target.partition(":")
        is_path = "/" in module_name or "\\" in module_name or module_name.startswith(".")
        if not colon or not module_name or not attribute or is_path:
            raise ConfigError(
                f"app {target!r} must be written module:attribute, for example main:app"
            )
        app = find_attribute(import_app(module_name, app_dir), module_name, attribute)
    else:
        app = target
    if factory:
        if not callable(app):
            raise ConfigError(f"--factory: {target!r} is not callable")
        try:
            app = app()
        except TypeError as exc:
            if exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
                raise ConfigError(f"--factory: {target!r} cannot be called: {exc}") from None
            raise
        if hasattr(app, "cr_code"):
            app.close()
            raise ConfigError(f"--factory: {target!r} is async: a factory is called, not awaited")
    if not callable(app):
        raise ConfigError(f"app {target!r} is not callable but {type(app).__name__}")
    return app


def import_app(name: str, app_dir: str) -> Any:
    """Import the module ``name``, looking in ``app_dir`` first."""
    directory = os.path.abspath(app_dir or ".")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # Only when the named module itself is missing; else one of its own imports is.
        if exc.name is None or not (name == exc.name or name.startswith(exc.name + ".")):
            raise
        raise ConfigError(f"cannot import app module {name!r}: looked in {directory}") from None


def find_attribute(module: Any, module_name: str, attribute: str) -> Any:
    """Follow the dots of ``attribute``."""
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"module {module_name!r} has no attribute {attribute!r}") from None
    return found


def is_coroutine_function(function: Any) -> bool:
    """Tell whether calling ``function`` makes a coroutine."""
    while hasattr(function, "func") and not hasattr(function, "__code__"):  # functools.partial
        function = function.func
        if not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
            function = type(function).__call__  # of an object that is called like a function
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    return bool(code is not None and code.co_flags & COROUTINE_FUNCTION)


def takes_all(app: Any) -> bool:
    """Tell whether scope, receive and send can be given at once, and scope alone cannot."""
    import inspect

    for follow in (False, True):  # itself, then what functools.wraps says it stands for
        try:
            give = inspect.signature(app, follow_wrapped=follow).bind
        except (TypeError, ValueError):  # it has none
            return False
        fits = []
        for number in (1, 3):
            try:
                give(*range(number))
            except TypeError:
                continue
            fits.append(number)
        if len(fits) == 1:
            return fits == [3]
    return False


def detect_interface(app: Any) -> str:
    """Tell ASGI 3 from ASGI 2: by asgiref's rules, and what is not async by its parameters."""
    if getattr(app, "_asgi_single_callable", False):
        return "asgi3"
    if getattr(app, "_asgi_double_callable", False) or isinstance(app, type):
        return "asgi2"
    if is_coroutine_function(app) or is_coroutine_function(type(app).__call__) or takes_all(app):
        return "asgi3"
    return "asgi2"


def check_call(app: Any) -> None:
    """Make a coroutine of the app's and forget it; raise ConfigError when that cannot be done."""
    try:
        app({}, None, None).close()
    except TypeError as exc:
        raise ConfigError(f"the app takes no scope, receive and send: {exc}") from None


def make_step_app(app: Any, interface: str = "auto", wsgi_workers: int = 10) -> StepApp:
    """Return ``app`` as a callable whose call makes a coroutine, whatever its interface."""
    if interface == "auto":
        interface = detect_interface(app)
    if interface == "wsgi":
        from .wsgi import WSGIApp

        wsgi_app: StepApp = WSGIApp(app, wsgi_workers).__call__
        return wsgi_app
    if interface == "asgi2":

        async def call_twice(scope: Scope, receive: Receive, send: Send) -> None:
            scope["asgi"]["version"] = "2.0"
            await app(scope)(receive, send)

        return call_twice
    if is_coroutine_function(app):
        step_app: StepApp = app
        check_call(step_app)
        return step_app
    if is_coroutine_function(type(app).__call__):
        bound: StepApp = app.__call__  # bound once instead of on each request
        check_call(bound)
        return bound

    async def call_and_await(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return call_and_await
