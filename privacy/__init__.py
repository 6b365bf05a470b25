"""The mathematics of privacy on tables and on arrays of embeddings: no images, no networks, no Ray."""
