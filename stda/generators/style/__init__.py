"""Style transfer: losses over an encoder, their minimisation picture by picture, and the feed-forward network."""
