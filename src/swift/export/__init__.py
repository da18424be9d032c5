"""What can be written from a trained model."""
