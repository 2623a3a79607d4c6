"""Define the values that travel: ops, receipts, schemas, row ids and exact column values; no I/O."""
