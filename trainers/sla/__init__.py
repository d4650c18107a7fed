"""Fine-tuning of sparse-linear attention."""
