"""The study file: what it may contain, how it is read, and what it must satisfy."""
