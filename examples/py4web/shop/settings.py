"""Settings, named as py4web's scaffold names them."""

import os

APP_FOLDER = os.path.dirname(__file__)
DB_FOLDER = os.path.join(APP_FOLDER, "databases")
DB_URI = "sqlite://storage.db"  # what is not sharded: here, nothing yet
SESSION_SECRET_KEY = os.environ.get("SHOP_SECRET", "for-development-only-8f1c2b7e-Change-Me!")
CELERY_BROKER = os.environ.get("CELERY_BROKER", "redis://localhost:6379/0")
PIPELINE = os.environ.get("PIPELINE_CONFIG", os.path.join(APP_FOLDER, "pipeline.toml"))
