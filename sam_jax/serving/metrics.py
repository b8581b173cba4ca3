"""What the server counts, in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one server; a registry of its own, so that several live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sam_jax_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "sam_jax_request_seconds", "Time to the whole answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "sam_jax_decoder_batch_size",
            "Prompts that were decoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.encoder_seconds = Histogram(
            "sam_jax_encoder_seconds", "Time in the image encoder.", buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("sam_jax_requests_in_flight", "Requests being worked on.", registry=self.registry)
        self.images = Gauge("sam_jax_cached_images", "Images in the cache.", registry=self.registry)
        self.cached_bytes = Gauge("sam_jax_cached_bytes", "Memory that they take.", registry=self.registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
