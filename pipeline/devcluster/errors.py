"""What can go wrong with a local cluster."""

from __future__ import annotations

from pipeline.errors import PipelineError


class ClusterFailed(PipelineError):
    """The local cluster cannot be started, found or taken down; the message says which process and what to do."""

    def __init__(self, why: str, log_tail: str = ""):
        super().__init__(f"{why}; its log ends with:\n{log_tail}" if log_tail else why)
        self.log_tail = log_tail
