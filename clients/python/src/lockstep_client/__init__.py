"""A client of Lockstep: sessions over REST, followed over a WebSocket, and what their clocks show.

- `Lockstep`: REST for programs that wait for each answer
- `AsyncLockstep`: the same for asyncio; sessions followed, and commands, over one WebSocket
- `lockstep_client.clocks`: what the clocks of a state show at an instant
- `mint_token`: tokens for players, hosts and viewers
- `lockstep_client.types`: the shapes of states, bodies and events
- `lockstep_client.testing`: a server whose time a test moves
"""

from lockstep_client import clocks, types
from lockstep_client.async_client import AsyncLockstep
from lockstep_client.changes import apply_changes
from lockstep_client.errors import LockstepError
from lockstep_client.rest import Lockstep
from lockstep_client.server_time import ServerTime
from lockstep_client.tokens import mint_token
from lockstep_client.updates import Update

__all__ = [
    "AsyncLockstep",
    "Lockstep",
    "LockstepError",
    "ServerTime",
    "Update",
    "apply_changes",
    "clocks",
    "mint_token",
    "types",
]
