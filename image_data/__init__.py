"""Picture files, datasets of labelled pictures, encoded latents, photographs."""
