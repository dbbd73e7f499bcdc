"""What can run a model. Each module imports its engine only when it is used."""
