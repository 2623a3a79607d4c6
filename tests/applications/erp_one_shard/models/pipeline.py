"""All tables of the trade are written through the pipeline. A request reads what it has itself written."""

from pipeline.web2py import Pipeline

pipeline = Pipeline(db, configuration)
for name in ("category", "supplier", "product", "product_category", "customer", "sale", "sale_line"):
    pipeline.attach(db[name], reads="own")
