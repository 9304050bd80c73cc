"""Text to token ids and back: the World vocabulary and its encoder."""
