"""Names that moved to ``ragtrain.index.faiss_search``."""

from ragtrain.index.faiss_search import FAISS_FILE, FaissSearcher, import_faiss, write_faiss

__all__ = ["FAISS_FILE", "FaissSearcher", "import_faiss", "write_faiss"]
