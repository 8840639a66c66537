"""What each peer of a room is sent, in whatever slices the room is served."""

import random

import pytest

from handlers import _native
from lockstep.live import audience as audience_module
from lockstep.live.audience import Audience
from lockstep.live.peers import Frames, Kind
from lockstep.live.recipients import MakeRecipients, PeerByPeer
from lockstep.wire.encodings import JSON
from tests.support.peers import FakePeer


class Taker(FakePeer):
    """Keeps the frames as they are."""

    def send_batch(self, frames: Frames) -> None:
        self.frames += [frame for _, frame in frames]

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        self.frames.append(frame)


class TakerInC(Taker, _native.Recipient):
    """The same, whose socket never takes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.outgoing = _native.Line()
        self.outgoing.clear_descriptor = -1

    def took(self, frames: Frames, sent: int) -> None:
        assert sent == -1
        self.send_batch(frames)


WAYS: dict[str, tuple[MakeRecipients, type[Taker]]] = {
    "in C": (_native.Recipients, TakerInC),
    "in Python": (PeerByPeer, Taker),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(40))
def test_each_peer_is_sent_what_it_is_to_have_once_and_in_order(
    seed: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_recipients, make_taker = WAYS[way]
    monkeypatch.setattr(audience_module, "PEERS_PER_LOOK", 2)
    luck = random.Random(seed)
    audience = Audience(JSON, make_recipients())
    due: dict[Taker, list[bytes]] = {}
    gone: list[Taker] = []

    for number in range(400):
        frame = f"{number} ".encode()
        here = [peer for peer in due if peer not in gone]
        match luck.randrange(7):
            case 0:
                peer = make_taker()
                due[peer] = []
                audience.enter(peer)
            case 1 if here and luck.random() < 0.5:
                peer = luck.choice(here)
                audience.leave(peer)
                gone.append(peer)
                assert peer.frames == due[peer][: len(peer.frames)]
                due[peer] = peer.frames[:]
            case 2 | 3:
                # Some are sent something else in its place, or nothing.
                left_out = [peer for peer in here if luck.random() < 0.3]
                for peer in left_out:
                    audience.catch_up(peer)
                    if luck.random() < 0.5:
                        peer.send(frame + b"for one")
                        due[peer].append(frame + b"for one")
                audience.put(frame, Kind.PRESENCE, left_out)
                for peer in here:
                    if peer not in left_out:
                        due[peer].append(frame)
            case 4:
                audience.put(frame, Kind.MESSAGE)
                for peer in here:
                    due[peer].append(frame)
            case 5 if here:
                peer = luck.choice(here)
                audience.catch_up(peer)
                assert peer.frames == due[peer]
            case _:
                audience.serve(lambda: luck.random() < 0.5)
    assert audience.serve(lambda: False)
    assert [peer.frames for peer in due] == list(due.values())
