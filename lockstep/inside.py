"""How many of something are here at once: what this process itself has let in."""


class Inside:
    """Counts by key; what nobody is in any more is forgotten."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def enter(self, key: str, limit: int) -> bool:
        """One more, unless that would be over the limit; 0: no limit, and nothing to count."""
        if not limit:
            return True
        count = self.counts.get(key, 0)
        if count >= limit:
            return False
        self.counts[key] = count + 1
        return True

    def leave(self, key: str, limit: int) -> None:
        if limit:
            self.counts[key] -= 1
            if not self.counts[key]:
                del self.counts[key]
