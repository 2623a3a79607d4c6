"""What tests share: oracles, servers, web harnesses, and parts of the pipeline over fakes."""
