"""From a trained network to a host: export with its parity gate, the registry, promotion by evidence."""
