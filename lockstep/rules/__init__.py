"""The rules of time, and what a session is. Pure: no clock, no chance, no loop."""
