"""All tables of the trade are written through the pipeline; `db` is the one shard's primary and is read as ever."""

from pipeline.web2py import Pipeline

pipeline = Pipeline(db, configuration)
for name in ("category", "supplier", "product", "product_category", "customer", "sale", "sale_line"):
    pipeline.attach(db[name], reads="own")
