"""The workers: `celery -A workers worker`, `celery -A workers flower`. No SQL here, only when and where it runs."""

from __future__ import annotations

from celery import Celery

app = Celery("workers", config_source="celeryconfig")

from workers.sweeper import Sweeper  # noqa: E402 - needs the app's settings module to be importable first

app.steps["worker"].add(Sweeper)
