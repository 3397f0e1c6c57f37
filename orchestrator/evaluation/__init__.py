"""Statistics for judging scores: ranks, verdicts, combinations, ground truths."""
