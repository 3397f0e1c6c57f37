"""Ray: the engine that runs Ray Tune, the pool of long-lived workers, and the cluster."""
