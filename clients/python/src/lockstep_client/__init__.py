"""A client of Lockstep: sessions over REST, followed over a WebSocket, and what their clocks show."""

from lockstep_client.async_client import AsyncLockstep
from lockstep_client.errors import LockstepError
from lockstep_client.rest import Lockstep
from lockstep_client.tokens import mint_token

__all__ = ["AsyncLockstep", "Lockstep", "LockstepError", "mint_token"]
