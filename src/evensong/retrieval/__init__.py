"""The only importer of faiss: build, save, search, and the exact search that judges it."""
