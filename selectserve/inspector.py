"""inspector: a page that shows the server at work: ``--inspect [HOST:]PORT``.

Its pictures come from an Observer (see there). The page is an ASGI app on native primitives,
stepped in the same thread by a small reactor of its own, which the big one sees as one descriptor
more. So the inspector is no part of the picture that it shows, and cannot freeze itself when it
stops the server. Nobody gets in without the token that is in the link in the log.
"""

from __future__ import annotations

import json
import os
import sys

from .arrival import Entrance
from .census import STAGES, connection_facts, stage_of
from .errors import ConfigError
from .listener import Listener
from .logs import error_logger
from .material import read_material
from .observer import LATENCIES, PHASES, Observer
from .service import Service
from .sockets import describe_address, open_tcp, parse_bind
from .task import NativeStepper, current_stepper, sleep, spawn
