"""Parts of the pipeline in this process, over fakes of our own."""
