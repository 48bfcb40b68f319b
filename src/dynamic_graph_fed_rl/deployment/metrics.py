"""What a server tells Prometheus about itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dynamic_graph_fed_rl.deployment.coordinator import Closed, Coordinator
from dynamic_graph_fed_rl.deployment.wire import STATUS

KINDS = ("weights", "transitions")


class Metrics:
    """Counters that the server moves, and gauges read from the coordinator when they are asked for."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.uploads = self._counter("uploads", "Uploads acknowledged, without duplicates.", "kind")
        self.duplicates = self._counter("duplicates", "Uploads received before.", "kind")
        self.rejected = self._counter("rejected", "Messages refused.", "reason")
        self.received_bytes = self._counter("received_bytes", "Bodies of uploads, as sent.")
        self.sent_bytes = self._counter("sent_bytes", "Bodies of parameters.")
        self.aggregation_seconds = Histogram(
            "dgfrl_aggregation_seconds", "Closing a round, its snapshot included.", registry=self.registry
        )
        self.pooled = self._counter("pooled_uploads", "Uploads of experience that have been pooled.")
        self._round = self._gauge("round", "The open round.")
        self._clients = self._gauge("clients", "Clients that have joined.")
        self._replay_size = self._gauge("replay_size", "Rows that the server's learner holds.")
        self._report = self._gauge("report", "What the last closed round reported.", "name")
        self._trouble = self._gauge("trouble", "1 while the server cannot do all of its work.")
        self._staleness = self._gauge("staleness_rounds", "Rounds closed since the client was in one.", "client")
        self._backlog = self._gauge("backlog_uploads", "Uploads of experience that wait to be pooled.", "client")
        self._gaps = self._gauge("sequence_gaps", "Sequence numbers skipped when they were due.", "client")
        for kind in KINDS:
            self.uploads.labels(kind)
            self.duplicates.labels(kind)
        for reason in STATUS:
            self.rejected.labels(reason)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"dgfrl_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"dgfrl_{name}", text, labels, registry=self.registry)

    def taken(self, kind: str, duplicate: bool, size: int) -> None:
        """An acknowledged upload of `size` bytes."""
        (self.duplicates if duplicate else self.uploads).labels(kind).inc()
        self.received_bytes.inc(size)

    def closed(self, closed: Closed) -> None:
        self.aggregation_seconds.observe(closed.seconds)
        self.pooled.inc(closed.pooled)

    def text(self, coordinator: Coordinator) -> bytes:
        """All of them in Prometheus' text format."""
        status = coordinator.status()
        self._round.set(status["round"])
        self._clients.set(len(status["clients"]))
        self._trouble.set(status["trouble"] is not None)
        self._replay_size.set(status["report"].get("server/replay_size", 0.0))
        for name, value in status["report"].items():
            self._report.labels(name).set(value)
        for gauge, column in (
            (self._staleness, "staleness"),
            (self._backlog, "backlog"),
            (self._gaps, "gaps"),
        ):
            # a place may have changed hands
            gauge.clear()
            for client in status["clients"]:
                gauge.labels(client["client"]).set(client[column])
        return generate_latest(self.registry)
