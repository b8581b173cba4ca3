"""Using a trained model on pictures."""
