"""What a training run is made of: its state, its stages, its losses, what is watched."""
