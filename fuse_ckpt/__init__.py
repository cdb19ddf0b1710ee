"""A filesystem that keeps every checkpoint a training job saves, and gives each of them back."""
