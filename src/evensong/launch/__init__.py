"""Starts and supervises the processes of one machine: Airflow, MLflow and the recommendation service."""
