"""One readable recipe per trainable part."""
