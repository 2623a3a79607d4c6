"""Take ops while Redis is away, and send them once it is back: the breaker, the spool's door and the drainer."""
