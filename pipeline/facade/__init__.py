"""The functions of `pipeline`, a module per purpose. Each is a method of this process's `client.Pipeline`."""
