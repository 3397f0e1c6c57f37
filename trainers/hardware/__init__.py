"""Devices, memory and CPU cores: what there is and what a trial may use."""
