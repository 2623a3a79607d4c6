"""Make the Celery app of `celery -A workers worker` and `celery -A workers flower`; no SQL here."""

from __future__ import annotations

from celery import Celery

app = Celery("workers", config_source="celeryconfig")

# the app's settings module has to be importable first
from workers.broker import outlive_collected_channels  # noqa: E402
from workers.threads import Threads  # noqa: E402

outlive_collected_channels()
app.steps["worker"].add(Threads)
