"""Fine-tuning on images by the denoising loss, with any layer-wise adapter."""
