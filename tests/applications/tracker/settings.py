"""Where the database is."""

DB_URI = "sqlite://tracker.sqlite"
