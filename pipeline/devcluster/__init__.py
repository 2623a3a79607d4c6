"""Run a local cluster: servers, workers and Flower as background processes of one directory; see `cluster.Cluster`."""
