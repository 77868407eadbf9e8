"""How models learn: loop, losses, sampling, optimizers, checkpoints."""
