"""What a user may set about a node without a server; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamic_graph_fed_rl.deployment.settings import ServerSettings


@dataclass(frozen=True)
class PeerSettings:
    """Where a node listens, whom it averages with and how, and what it refuses."""

    listen: str = "127.0.0.1:5060"
    """HOST:PORT to listen at. Any host but this machine's own needs a certificate and a token, or --insecure."""
    neighbours: str = ""
    """URLs of the nodes that this one sends to, with commas between them."""
    place: int = 0
    """Which of the --agents this node is, from 0: it decides on its world. No two nodes may have the same."""
    method: Literal["push-sum", "pairwise"] = "push-sum"
    """Send away halves (also where neighbours are not mutual), or agree on the mean of two."""
    exchanges: int = 1
    """Messages that a node sends after each round of learning, each to a neighbour drawn at random."""
    patience: int = 3
    """Messages in a row without an answer after which a neighbour is only tried in every so many rounds."""
    state: Path | None = None
    """Folder in which the node keeps its state, to go on after it was killed; default: nothing is kept."""
    checkpoint_every: int = 10
    """Rounds between checkpoints of the learner in that folder; parameters are kept with every message."""
    token_file: Path | None = None
    """File with the secret that all nodes share, which only its owner may read; default: any process on this machine
    may send."""
    ca: Path | None = None
    """Certificates to trust in neighbours, a PEM file; default: the system's."""
    certfile: str = ""
    """TLS certificate chain, a PEM file."""
    keyfile: str = ""
    """Private key of that certificate, a PEM file."""
    insecure: bool = False
    """Speak with other machines without TLS: the token and parameters can be read on the way."""
    max_norm_factor: float = 100.0
    """Refuse parameters that are further away than this many times the norm of one's own; 0: accept any."""
    max_body_bytes: int = 64 * 2**20
    """Size of a message, as sent and decompressed."""
    wait_s: float = 60.0
    """How long to wait for neighbours, before the first round and after the last [s]."""

    def check(self) -> None:
        """
        Raises:
            ValueError: names the setting, its value, and what would be right.
        """
        host, colon, port = self.listen.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) < 65536):
            raise ValueError(f"listen '{self.listen}': must be HOST:PORT, such as 127.0.0.1:5060")
        if self.place < 0:
            raise ValueError(f"place {self.place}: counts from 0")
        smallest = {"exchanges": 0, "patience": 1, "checkpoint_every": 1, "max_norm_factor": 0, "wait_s": 0}
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least {least}")

    @property
    def urls(self) -> list[str]:
        """
        Raises:
            ValueError: no neighbour, or the same one twice.
        """
        urls = [one.strip().rstrip("/") for one in self.neighbours.split(",") if one.strip()]
        if not urls or len(set(urls)) < len(urls):
            raise ValueError(f"neighbours '{self.neighbours}': must be URLs of different nodes, at least one")
        return urls

    def serving(self, token: str) -> ServerSettings:
        """How to listen."""
        host, _, port = self.listen.rpartition(":")
        return ServerSettings(
            host=host.strip("[]"),
            port=int(port),
            certfile=self.certfile,
            keyfile=self.keyfile,
            insecure=self.insecure,
            join_token=token,
        )
