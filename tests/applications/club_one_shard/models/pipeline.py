"""The club's pages are written through the pipeline, with their versions; users and groups are written to `db`."""

from pipeline.web2py import Pipeline

pipeline = Pipeline(db, configuration)
for name in ("tag", "page", "remark", "bookmark"):
    pipeline.attach(db[name], reads="own")
