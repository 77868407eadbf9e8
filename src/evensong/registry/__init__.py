"""The only importer of mlflow: tracking, bundles, aliases, ledger."""
