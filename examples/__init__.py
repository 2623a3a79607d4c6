"""Applications to look at, each started by one command on a cluster of this machine."""
