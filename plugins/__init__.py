"""Methods from papers, one file each, found by entry point."""
