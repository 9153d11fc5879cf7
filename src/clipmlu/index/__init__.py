"""Vector indices of image embeddings: building, updating and searching them."""
