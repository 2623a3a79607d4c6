"""Metrics for Prometheus: a worker's own at a port of its own, the deployment's at Flower's `/metrics`."""
