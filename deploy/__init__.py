"""Lockstep on one machine, under supervisord: deploy/stack.py starts it and looks after it."""
