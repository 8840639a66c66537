"""How many of something are here at once, as this process counts by itself."""


class Occupancy:
    """Counts by key; a key that comes down to 0 is forgotten."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def enter(self, key: str, limit: int) -> bool:
        """Count one more, unless that would be over the limit; 0: no limit, and nothing is counted."""
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
