"""The pool that runs tasks in this process, and parts that all pools share."""
