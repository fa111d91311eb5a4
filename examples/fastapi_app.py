"""FastAPI, unmodified: what an application looks like that never heard of selectserve.

    pip install fastapi
    python -m selectserve examples.fastapi_app:app     then open http://localhost:8000/docs

asyncio works inside, all of it, though its event loop never runs: the reactor answers in its place.
"""

import asyncio
import contextlib
import time
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class Note(BaseModel):
    text: str
    stars: int = 0


@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.notes = {}
    yield
    app.state.notes.clear()


app = FastAPI(title="Notes on selectserve", lifespan=lifespan)


async def notes() -> dict[str, Note]:
    return app.state.notes


Notes = Annotated[dict[str, Note], Depends(notes)]


@app.get("/")
async def index(kept: Notes) -> list[str]:
    return sorted(kept)


@app.put("/notes/{name}")
async def put(name: str, note: Note, kept: Notes) -> Note:
    kept[name] = note
    return note


@app.get("/notes/{name}")
def get(name: str, kept: Notes) -> Note:
    """A plain function: FastAPI calls it in a thread."""
    if name not in kept:
        raise HTTPException(404, f"there is no note named {name}")
    return kept[name]


@app.get("/sleep")
async def sleep(seconds: float = 0.1) -> dict[str, float]:
    """asyncio.sleep, on the reactor's timers."""
    before = time.monotonic()
    await asyncio.sleep(min(seconds, 10))
    return {"slept": time.monotonic() - before}


@app.get("/count")
async def count(to: int = 5) -> StreamingResponse:
    async def lines():
        for number in range(1, min(to, 1000) + 1):
            yield f"{number}\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())
