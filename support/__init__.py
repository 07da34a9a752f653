"""What makes the pair dependable: a small module for each thing. Nothing here imports train or test."""
