"""The application: what the platform does, spoken in jobs, runs and accounts."""
