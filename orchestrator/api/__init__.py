"""The service over HTTP: everything that knows requests and responses."""
