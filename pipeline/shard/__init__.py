"""Open sessions on database nodes, and speak their SQL: dialects, statements, the pipeline's own tables."""
