"""Chess: the moves are the data of the presses."""
