"""The stages of a study, one file each. A stage is a function of its context and its block in the study file."""
