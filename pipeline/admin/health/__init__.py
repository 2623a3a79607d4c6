"""Judge whether a worker consumes, a web host's ops leave, and Flower hears: for service managers, not for people.

Nothing is red because Redis or a database is away: a restart of our process would mend neither.
"""
