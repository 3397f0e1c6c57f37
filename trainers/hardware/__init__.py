"""Available devices, memory and CPU cores, and the share that a trial may use."""
