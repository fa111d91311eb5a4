"""Strawberry GraphQL: queries over HTTP, subscriptions over WebSocket."""

import asyncio
from collections.abc import AsyncGenerator

import strawberry
from starlette.applications import Starlette
from strawberry.asgi import GraphQL

from . import note


@strawberry.type
class Query:
    @strawberry.field
    async def hello(self, name: str) -> str:
        await asyncio.sleep(0)
        return f"Hello {name}"


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, target: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(target):
                yield number
                await asyncio.sleep(0)
        finally:
            note("subscription closed")


app = Starlette()
graphql = GraphQL(strawberry.Schema(Query, subscription=Subscription))
app.mount("/graphql", graphql)
