"""What the protocols share: networks, images, scores, tables, and the cells that results are made of."""
