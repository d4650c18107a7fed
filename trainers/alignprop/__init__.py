"""Fine-tuning towards a reward by sending its gradient through the sampler."""
