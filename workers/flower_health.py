"""Say at Flower's `/healthcheck`, which needs no login, how long ago Flower heard a worker."""

from __future__ import annotations

from flower.views.monitor import Healthcheck

from pipeline import clock


class HealthPage(Healthcheck):
    """Flower's own page, with a second line: `heard_s=1.2`, or nothing behind the sign where it has heard no worker."""

    async def get(self) -> None:
        """Answer a check."""
        workers = list(self.application.events.state.workers.values())
        heard_s = max((worker.heartbeats[-1] for worker in workers if worker.heartbeats), default=None)
        ago = "" if heard_s is None else f"{max(0.0, clock.wall_ms() / 1000 - heard_s):.1f}"
        self.write(f"OK\nheard_s={ago}\n")
