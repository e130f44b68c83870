"""What every layer may use: errors, configuration, randomness, modality names, and the contract between layers."""
