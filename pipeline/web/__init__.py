"""What the faces of web frameworks share: one request's view of the client, and one client per configuration."""
