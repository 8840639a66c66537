"""Who sends calls and waits: one that blocks, one for asyncio. What is to be done, `exchange.py` says."""

import asyncio
import time
from typing import TypeVar, cast

import httpx

from lockstep_client.addresses import rest_url
from lockstep_client.calls import Call
from lockstep_client.errors import LockstepError
from lockstep_client.exchange import Outcome, Wait, exchange
from lockstep_client.tls import tls_context
from lockstep_client.tokens import AsyncTokens, AsyncTokenSource, Credentials, TokenSource

T = TypeVar("T")


class Sender:
    """It blocks until there is an answer."""

    def __init__(self, url: str, token: TokenSource | None, timeout_s: float) -> None:
        self._url = rest_url(url)
        self._credentials = Credentials(token)
        self._timeout_s = timeout_s
        self._http = httpx.Client(verify=tls_context())

    def do(self, call: Call[T]) -> T:
        """What the answer to the call says. Raises LockstepError."""
        steps = exchange(call, self._url, self._credentials, self._timeout_s)
        outcome: Outcome = None
        while True:
            _require_open(self._http)
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return cast(T, end.value)
            if isinstance(step, httpx.Request):
                try:
                    outcome = self._http.send(step)
                except httpx.RequestError as error:
                    outcome = error
            elif isinstance(step, Wait):
                time.sleep(step.seconds)
            else:
                outcome = self._credentials.take(self._credentials.ask())

    def close(self) -> None:
        self._http.close()


class AsyncSender:
    """It lets others run until there is an answer."""

    def __init__(self, url: str, token: AsyncTokenSource | None, timeout_s: float) -> None:
        self._url = rest_url(url)
        self._credentials = Credentials(token)
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(verify=tls_context())
        self.tokens = AsyncTokens(self._credentials)

    async def do(self, call: Call[T]) -> T:
        """What the answer to the call says. Raises LockstepError."""
        steps = exchange(call, self._url, self._credentials, self._timeout_s)
        outcome: Outcome = None
        while True:
            _require_open(self._http)
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return cast(T, end.value)
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self._http.send(step)
                except httpx.RequestError as error:
                    outcome = error
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                outcome = await self.tokens.token()

    async def close(self) -> None:
        await self._http.aclose()


def _require_open(http: httpx.Client | httpx.AsyncClient) -> None:
    if http.is_closed:
        raise LockstepError("CLOSED", "This client was closed")
