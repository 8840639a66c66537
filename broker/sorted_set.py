"""What Redis calls a sorted set, for the embedded broker."""

from bisect import bisect_left, bisect_right, insort


class SortedSet:
    """Members by score, then by name."""

    def __init__(self) -> None:
        self._scores: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []

    def put(self, member: str, score: int) -> None:
        self.drop(member)
        self._scores[member] = score
        insort(self._order, (score, member))

    def drop(self, member: str) -> None:
        score = self._scores.pop(member, None)
        if score is not None:
            del self._order[bisect_left(self._order, (score, member))]

    def after(self, entry: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        start = bisect_right(self._order, entry)
        return self._order[start : start + limit]

    def until(self, score: int, limit: int) -> list[tuple[int, str]]:
        end = bisect_left(self._order, (score + 1, ""))
        return self._order[: min(end, limit)]
