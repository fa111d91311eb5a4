"""A FastAPI app with an async endpoint (`/`) and a sync one, which FastAPI runs on a thread
(`/sync`)."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/sync")
def hello_sync() -> dict[str, str]:
    return {"hello": "world"}
