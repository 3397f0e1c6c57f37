"""Statistics that judge scores: ranks, verdicts, combinations, ground truths."""
