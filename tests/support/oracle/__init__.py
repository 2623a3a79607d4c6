"""The truth, kept apart from the pipeline: a model, a ledger, a judge, load makers, plain connections."""
