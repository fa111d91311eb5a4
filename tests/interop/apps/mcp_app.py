"""The MCP SDK's streamable HTTP server."""

from __future__ import annotations

import anyio
from mcp.server import MCPServer

server = MCPServer("tests")


@server.tool()
async def add(one: int, other: int) -> int:
    """Add two numbers."""
    await anyio.sleep(0)
    return one + other


@server.tool()
def shout(text: str) -> str:
    """Answer in capitals, from a thread."""
    return text.upper()


app = server.streamable_http_app()
