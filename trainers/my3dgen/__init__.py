"""A personal 3D head: anchors of a person's photos, then a low-rank adapter on the generator."""
