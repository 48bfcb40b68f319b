"""Who is in a federation: names, tokens and places, and for how long."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dynamic_graph_fed_rl.deployment.store import Client
from dynamic_graph_fed_rl.deployment.wire import Refused

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


@dataclass(frozen=True)
class Joined:
    """A client's place in the federation; `next_seq` is above every sequence number received for it."""

    client: str
    token: str
    place: int
    round: int
    next_seq: int
    returning: bool


class Members:
    """Clients by place, of `places` places. A client not heard of for `lease_s` seconds of `clock` has lapsed."""

    def __init__(self, places: int, lease_s: float, clock: Callable[[], float]):
        self._places, self._lease_s, self._clock = set(range(places)), lease_s, clock
        self.all: dict[int, Client] = {}

    def __getitem__(self, place: int) -> Client:
        return self.all[place]

    def update(self, place: int, **values: Any) -> Client:
        self.all[place] = replace(self.all[place], **values)
        return self.all[place]

    def admitted(self, name: str, token: str | None, place: int | None, open_round: int) -> tuple[Client, str, bool]:
        """The client to store, its token, and whether it has been here before.

        Raises:
            Refused: bad_request, identity_taken, place_taken or no_place_left.
        """
        if not _NAME.fullmatch(name):
            raise Refused("bad_request", "name: must be 1 to 64 letters, digits, dots, underscores and hyphens")
        if token is not None and not _TOKEN.fullmatch(token):
            raise Refused("bad_request", "token: must be 32 to 128 letters, digits, underscores and hyphens")
        if place is not None and place not in self._places:
            raise Refused("bad_request", f"place {place}: must be from 0 to {max(self._places)}")
        now = self._clock()
        known = next((client for client in self.all.values() if client.name == name), None)
        returning = known is not None and token is not None and _is_of(_hashed(token), known)
        if known is not None and not returning and known.lease_until > now:
            raise Refused("identity_taken", f"'{name}' has joined with another token; take another name")
        if known is not None and place not in (None, known.place):
            raise Refused("place_taken", f"'{name}' has place {known.place}, it cannot have {place} as well")
        token = token or secrets.token_urlsafe(32)
        if known is not None and returning:
            return replace(known, lease_until=now + self._lease_s), token, True
        chosen = known.place if known is not None else self._free(place, now)
        # what was received at a place stays received when it changes hands
        highest = self.all[chosen].highest if chosen in self.all else -1
        client = Client(chosen, name, _hashed(token), now + self._lease_s, open_round - 1, highest=highest)
        return client, token, False

    def _free(self, asked: int | None, now: float) -> int:
        held = {place for place, client in self.all.items() if client.lease_until > now}
        if asked is not None:
            if asked in held:
                raise Refused("place_taken", f"place {asked} is taken; free: {sorted(self._places - held)}")
            return asked
        left = sorted(self._places - set(self.all)) or sorted(self._places - held)
        if not left:
            raise Refused("no_place_left", f"all {len(self._places)} places are taken")
        return left[0]

    def authenticate(self, token: str, name: str | None) -> int:
        """The place of the client whose token this is, which must be `name`'s if that is given.

        Renews the lease; on the disk with the next upload, since a download alone is not worth a flush.

        Raises:
            Refused: unauthorised, expired or forbidden.
        """
        found, hashed = None, _hashed(token)
        for client in self.all.values():
            # no early way out: the time that it takes tells nothing
            found = client if _is_of(hashed, client) else found
        if found is None:
            raise Refused("unauthorised", "this token is nobody's here; join first")
        now = self._clock()
        if found.lease_until <= now:
            raise Refused("expired", "this token has lapsed; join again with it")
        if name not in (None, found.name):
            raise Refused("forbidden", f"this token is not that of '{name}'")
        self.update(found.place, lease_until=now + self._lease_s)
        return found.place

    def expected(self, oldest: int) -> set[int]:
        """Places that a round waits for: of clients that have not lapsed and were in round `oldest` or later."""
        now = self._clock()
        return {
            place for place, client in self.all.items() if client.lease_until > now and client.last_round >= oldest
        }


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _is_of(token_sha256: str, client: Client) -> bool:
    return hmac.compare_digest(client.token_sha256, token_sha256)
