"""Using a trained model on images."""
