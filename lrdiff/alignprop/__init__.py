"""AlignProp: fine-tuning towards a reward by sending its gradient through the sampler (arXiv 2310.03739).

`trajectory.rollout` samples with a graph, `windows` says which steps carry it, `objective` adds rewards up, `build`
makes them from what was asked for.
"""
