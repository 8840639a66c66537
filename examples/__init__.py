"""Applications that people start from. Each runs by one command: see the README in its folder."""
