"""Running, finding and deleting studies."""
