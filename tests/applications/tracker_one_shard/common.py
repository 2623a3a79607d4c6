"""What the controllers share: database, session, and the pipeline for all tables."""

import os

from py4web import DAL, Session

from pipeline.py4web import Pipeline

from .settings import DB_URI
from .tables import define_tables

FOLDER = os.path.dirname(__file__)
os.makedirs(os.path.join(FOLDER, "databases"), exist_ok=True)
db = DAL(DB_URI, folder=os.path.join(FOLDER, "databases"), pool_size=5, bigint_id=True, fake_migrate_all=True)
define_tables(db)
db.commit()
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
pipeline = Pipeline(db, os.path.join(FOLDER, "pipeline.toml"))
for name in ("person", "project", "ticket", "comment", "vote"):
    pipeline.attach(db[name], reads="own")
uses = (session, pipeline, db)
