"""Sources, the lake, expectations (the only importer of great_expectations), simulator, splits."""
