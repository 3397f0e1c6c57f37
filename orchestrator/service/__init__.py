"""The service: submitted studies run in the background, one driver process each."""
