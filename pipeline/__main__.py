"""`python -m pipeline` is the `pipeline` command."""

from pipeline.owners import leave_working_directory

leave_working_directory()  # `python -m` has put it first

from pipeline.cli import main  # noqa: E402

main()
