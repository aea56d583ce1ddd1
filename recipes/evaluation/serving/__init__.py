"""An OpenAI-compatible endpoint of one model, for trying a checkpoint."""
