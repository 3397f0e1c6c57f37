"""What each driver would compute anew: done once, in the process from which they are forked."""

from orchestrator.engines.pools.score_cache import scoring_code

for _proxy in ("length-distortion", "ntk-condition", "params", "flops", "depth"):
    scoring_code(_proxy, "as-vit")
