"""A client of Lockstep: sessions over REST, followed over a WebSocket, and what their clocks show."""
