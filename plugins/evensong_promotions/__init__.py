"""The page *Promotions*: an app below Airflow's own, and its static files."""
