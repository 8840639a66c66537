"""This process's clients."""
