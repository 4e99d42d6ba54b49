"""Where policies are tuned, trained and compared. Imports the world and the judgement, never the host service."""
