"""What the controllers share: database, session, and the pipeline."""

import os

from py4web import DAL, Session

from pipeline.py4web import Pipeline

from . import settings
from .tables import define_tables

os.makedirs(settings.DB_FOLDER, exist_ok=True)
db = DAL(settings.DB_URI, folder=settings.DB_FOLDER, pool_size=1)
define_tables(db)
session = Session(secret=settings.SESSION_SECRET_KEY)
pipeline = Pipeline(db, settings.PIPELINE, broker=settings.CELERY_BROKER)
