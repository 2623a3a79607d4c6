"""The one model file that sends the application's writes through the pipeline, and its reads to the replicas."""

from pipeline.web2py import Pipeline

pipeline = Pipeline(db)  # [pipeline] of private/appconfig.ini
pipeline.attach(db.item)  # its grid and its forms write through the queue, unchanged
