"""Statistics of the softmax map, without storing the map."""
