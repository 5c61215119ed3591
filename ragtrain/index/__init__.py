"""The dense index: passages with random access, vectors in passage order, exact search."""
