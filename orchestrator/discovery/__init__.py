"""Search for new score formulas by evolution."""
