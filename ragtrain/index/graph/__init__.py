"""Knowledge graphs on disk, baselines that walk on them, and the step from scores of entities to documents."""
