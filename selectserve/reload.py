"""reload: to come."""

from __future__ import annotations

from .supervisor import Supervisor


class Reloader(Supervisor): ...
