"""What a user may set about a server; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, when its rounds close, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs a certificate, or --insecure."""
    port: int = 5050
    """Port to listen at; 0 takes a free one and says which."""
    certfile: str = ""
    """TLS certificate chain, a PEM file."""
    keyfile: str = ""
    """Private key of that certificate, a PEM file."""
    insecure: bool = False
    """Listen at other addresses without TLS: tokens and parameters can be read on the way."""
    join_token: str = ""
    """Secret that clients must show to join; default: anyone who can reach the server may join."""
    quorum: int = 0
    """Clients whose uploads suffice to close a round once the deadline has passed; 0: all of them."""
    deadline: int = 0
    """Further uploads for the same round by one client after which a quorum no longer waits for the others; 0: it
    always waits."""
    absent_after: int = 3
    """Rounds missed in a row after which a client is not waited for until it uploads again."""
    lease_hours: float = 24.0
    """Silence after which a client's token lapses and its place may be taken [h]."""
    max_norm_factor: float = 100.0
    """Refuse parameters that have moved further than this many times the usual; 0: accept any."""
    max_backlog: int = 64
    """Uploads of experience by one client that may wait to be pooled."""
    max_uploads: int = 64
    """Uploads that are taken in at a time, of one client a few; more are told to come back."""
    aliases: bool = False
    """Also offer /upload-transition, /upload-weights and /download-params, with lists of numbers as JSON."""


@dataclass(frozen=True)
class ClientSettings:
    """Who joins a server, what it keeps where, and what it does while nobody answers."""

    name: str = ""
    """Name in the federation; default: this machine's, with a number if a client here has it already."""
    place: int | None = None
    """Row of the federation to take, for runs that must repeat; default: the lowest that is free."""
    state: Path | None = None
    """Folder of what must survive a kill, one for each client; default: sites/NAME."""
    token_file: Path | None = None
    """File with the secret that makes this client known again, made if it is not there; default: token in that
    folder."""
    join_token_file: Path | None = None
    """File with the secret that the server asks of those who join; default: the environment's DGFRL_JOIN_TOKEN."""
    ca: Path | None = None
    """Certificates to trust, a PEM file; default: the system's."""
    insecure: bool = False
    """Speak to another machine without TLS: tokens and parameters can be read on the way."""
    checkpoint_every: int = 10
    """Rounds between checkpoints of the client's own state."""
    queue: int = 16
    """Uploads of experience that may wait for the server, on the disk."""
    ahead: int = 8
    """Lots of a round's work that are done further while the server cannot be reached."""
    give_up_minutes: float = 0.0
    """End if the server cannot be reached for so long; 0: never."""
