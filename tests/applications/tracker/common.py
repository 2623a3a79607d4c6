"""What the controllers share: database and session."""

import os

from py4web import DAL, Session

from .settings import DB_URI
from .tables import define_tables

FOLDER = os.path.dirname(__file__)
os.makedirs(os.path.join(FOLDER, "databases"), exist_ok=True)
db = DAL(DB_URI, folder=os.path.join(FOLDER, "databases"), pool_size=5)
define_tables(db)
db.commit()
session = Session(secret="1a2b3c4d-5e6f-7a8b-9c0d-PlentyOfEntropy!")
uses = (session, db)
