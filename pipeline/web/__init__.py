"""What the objects of the web frameworks share: one request's calls, and one client per configuration."""
