"""The only importer of feast: transformations, offline, online."""
