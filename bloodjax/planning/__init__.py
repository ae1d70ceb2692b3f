"""Plans: a run's steps, compiled for a machine that is not here, and what its compiler says."""
